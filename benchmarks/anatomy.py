"""Do the soft labels learn anatomy? What OLS learns on BrainRegions, against which regions touch in the AAL atlas and how far apart their centroids are.

    OMP_NUM_THREADS=1 python benchmarks/studies.py run      # or `calibrated.py brain` and `ols:alpha=1.0`: the trained networks, kept in benchmarks/runs (not committed)
    python benchmarks/anatomy.py [FOLDER]                   # 2 minutes; FOLDER has the runs, default: benchmarks/runs/studies/right-40/runs

Writes anatomy.csv (each matrix's agreement with the atlas), anatomy_regions.csv (the same a region, for OLS) and anatomy_pairs.csv (the soft labels of one run with the atlas, for the picture).
Five matrices of a network are looked at, the mean of 5 seeds each: its soft labels, learnt from training images (left hemisphere; with alpha 1 OLS only watches, so that these are
a plain network's), the mean prediction and the confusions of each region's held-out images (right hemisphere, validation and test); and without a network how alike the regions' mean training images are.
The agreement is over all pairs of regions, of the matrix without its diagonal, made symmetric. Intervals: bootstrap over regions and seeds (`near` and `top` over rows). Chance: Mantel's test, the regions' names
permuted in the atlas."""
import sys, warnings
from pathlib import Path
import cv2, numpy as np, pandas as pd, torch
from scipy.stats import false_discovery_control, rankdata, t
from ols_fastai.core import load_tensors, write_csv
from ols_fastai.data.splits import sample_per_class
from ols_fastai.data.datasets import atlas_files, brain_regions, load_volume, region_voxels
from ols_fastai.core import package_versions

here = Path(__file__).parent
seeds,n_boot,n_perm = 5,1000,4999
plain = 'ols:alpha=1.0'  # trained on hard labels alone; the soft labels are learnt and not used
ols = 'ols:alpha=0.5'

def left_atlas():
    "Regions of BrainRegions, sorted as its vocab is, and the atlas's voxels as indices into them (X,Y,Z); -1 for whatever is no region of the left side"
    regions = sorted(region_voxels())
    vol,affine = load_volume(atlas_files()/'atlases/atlas_aal.nii.gz')
    index = pd.read_csv(atlas_files()/'atlases/labels_aal.csv').set_index('name')['index']
    lut = np.full(int(vol.max())+1, -1)
    lut[[index[o+'_L'] for o in regions]] = range(len(regions))
    return regions,lut[vol.astype(int)],affine

def borders(vol, K):
    "Faces of voxels at which two regions touch (K,K)"
    n = np.zeros((K,K), dtype=int)
    for axis in range(3):
        v = np.moveaxis(vol, axis, 0)
        a,b = v[:-1].ravel(),v[1:].ravel()
        m = (a>=0) & (b>=0) & (a!=b)
        np.add.at(n, (a[m],b[m]), 1)
    return n+n.T

def centroids(regions):
    "Centres of gravity of the left regions (K,3) in mm"
    voxels = region_voxels()
    return np.stack([voxels[o][0].mean(0) for o in regions])

def distances(c): return np.linalg.norm(c[:,None]-c[None], axis=-1)

def mean_by_class(x, targs): return np.stack([x[targs==o].mean(0) for o in np.unique(targs)])

def image_likeness(seed):
    "Correlation of the regions' mean training images, drawn as `compare` draws them (K,K)"
    src = brain_regions()
    df = sample_per_class(pd.read_csv(src/'train.csv'), 40, seed)
    x = np.stack([cv2.resize(cv2.imread(str(src/o), cv2.IMREAD_GRAYSCALE), (32,32)).ravel() for o in df.filename])
    return np.corrcoef(mean_by_class(x, df.label.to_numpy()))

def matrices(folder, regions):
    "(matrix, network) -> one matrix (K,K) a seed"
    K = len(regions)
    def load(spec):
        for seed in range(seeds):
            tensors,info = load_tensors(folder/f"{spec.replace(':', '_')}-{seed}.safetensors")
            if info['vocab']!=regions: raise ValueError(f"{folder}: {spec}, seed {seed} was trained on other classes than the atlas's")
            yield tensors
    out = {('soft labels',spec): [o['S'].double().numpy() for o in load(spec)] for spec in (*(f'ols:alpha={a}' for a in (.1,.3,.5,.7,.9)), plain)}
    for spec in ('hard','ls:eps=0.1',ols):
        held_out = [(torch.cat([o['valid_preds'],o['preds']]).double().numpy(), torch.cat([o['valid_targs'],o['targs']]).numpy()) for o in load(spec)]
        out['mean prediction',spec] = [mean_by_class(p, y) for p,y in held_out]
        out['confusions',spec] = [mean_by_class(np.eye(K)[p.argmax(1)], y) for p,y in held_out]
    out['mean images','none'] = [image_likeness(seed) for seed in range(seeds)]
    return out

def standard(x): return (x-x.mean(-1, keepdims=True))/x.std(-1, keepdims=True)

def off_diagonal(M): return M[~np.eye(len(M), dtype=bool)].reshape(len(M), -1)

def row_ranks(M):
    "Standardised ranks of each row's entries off the diagonal, which is 0 (K,K)"
    out = np.zeros_like(M, dtype=float)
    out[~np.eye(len(M), dtype=bool)] = standard(rankdata(off_diagonal(M), axis=1)).ravel()
    return out

class Agreement:
    """How well matrices (K,K) agree with the atlas, the mean of several.

    adjacent, distance: Spearman's correlation with touching (0 or 1) and with minus the distance of the centroids; auc: chance that of two pairs, one that touches and one that does not,
    the touching one has the larger entry; near: share of a row's sum off the diagonal that goes to touching regions; top: share of the rows whose largest entry off the diagonal is a touching region"""
    names = ('adjacent','distance','auc','near','top')
    def __init__(self, touch, dist): self.touch,self.dist,self.K = touch.astype(float),dist,len(touch)

    def pairs(self, idx):
        "Index of all pairs of different regions among `idx`"
        i,j = np.triu_indices(len(idx), 1)
        i,j = idx[i],idx[j]
        return i[i!=j],j[i!=j]

    def ranks(self, M, i, j):
        "Ranks of a matrix's pairs, and the same standardised (2,pairs)"
        r = rankdata(M[i,j]+M[j,i])
        return np.stack([r, standard(r)])

    def of_pairs(self, ranks, touch, far):
        n1 = touch.sum()
        return ranks[1]@standard(touch)/len(touch), ranks[1]@standard(far)/len(touch), (ranks[0,touch>0].mean()-(n1+1)/2)/(len(touch)-n1)

    def rows(self, M):
        """Each row's shares off the diagonal, and 1 at the largest of them (2,K,K); without a number where a row gives nothing away, such as that of a class without confusions.
        Where entries are below 0 (correlations) there are no shares"""
        M = np.where(np.eye(self.K)>0, 0, M)
        gives = M.sum(1, keepdims=True)
        share = np.where(gives>0, M, np.nan)/np.where(gives>0, gives, 1) if M.min()>=0 else np.full_like(M, np.nan)
        best = np.eye(self.K)[np.where(np.eye(self.K)>0, -np.inf, M).argmax(1)]
        return np.stack([share, best if M.min()<0 else np.where(gives>0, best, np.nan)])

    def measure(self, Ms, idx=None):
        "All measures, over all regions or over those in `idx`"
        idx = np.arange(self.K) if idx is None else idx
        i,j = self.pairs(idx)
        touch,far = self.touch[i,j],rankdata(-self.dist[i,j])
        return np.mean([[*self.of_pairs(self.ranks(M, i, j), touch, far), *np.nanmean((self.rows(M)*self.touch).sum(-1)[:,idx], 1)] for M in Ms], 0)

    def by_chance(self, Ms, perms):
        "All measures with the regions renamed (permutations,measures). They are linear in ranks and shares, so that these are averaged first"
        i,j = self.pairs(np.arange(self.K))
        ranks,far = np.mean([self.ranks(M, i, j) for M in Ms], 0),np.zeros((self.K,self.K))
        far[i,j] = far[j,i] = rankdata(-self.dist[i,j])
        share = np.nanmean([self.rows(M) for M in Ms], 0)
        out = []
        for p in perms:
            touch = self.touch[p][:,p]
            out.append([*self.of_pairs(ranks, touch[i,j], far[p[i],p[j]]), *np.nanmean((share*touch).sum(-1), 1)])
        return np.array(out)

    def bootstrap(self, Ms, n=n_boot):
        "Regions and seeds drawn anew, the same for all matrices (n,measures)"
        rng = np.random.default_rng(0)
        return np.stack([self.measure([Ms[s] for s in rng.integers(len(Ms), size=len(Ms))], rng.integers(self.K, size=self.K)) for _ in range(n)])

def overall(agree, found, perms):
    "A row a matrix and measure, and one for each difference that is asked about"
    rows,boots,means = [],{},{}
    def add(matrix, network, of, mean, boot, **kwargs):
        lo,hi = np.quantile(boot, [.025,.975], axis=0)
        rows.extend(dict(matrix=matrix, network=network, against=of, measure=m, mean=mean[k], low=lo[k], high=hi[k], **{a: v[k] for a,v in kwargs.items()}) for k,m in enumerate(agree.names))
    for key,Ms in found.items():
        means[key],boots[key] = agree.measure(Ms),agree.bootstrap(Ms)
        null = agree.by_chance(Ms, perms)
        add(*key, 'the atlas', means[key], boots[key], chance=null.mean(0), chance_high=np.quantile(null, .975, axis=0), p=np.where(np.isnan(means[key]), np.nan, (1+(null>=means[key]).sum(0))/(1+len(perms))))
    for a,b in [(('soft labels',ols),('soft labels',plain)), *(((o,ols),(o,n)) for o in ('mean prediction','confusions') for n in ('hard','ls:eps=0.1')), (('soft labels',plain),('mean images','none'))]:
        add(*a, ' '.join(b), means[a]-means[b], boots[a]-boots[b])
    return pd.DataFrame(rows)

def by_region(agree, found, perms, regions, centre):
    "Each region's row of the soft labels against its row of the atlas"
    far,out = row_ranks(-agree.dist),dict(region=regions, **dict(zip('xyz', centre.T)), n_touching=agree.touch.sum(1).astype(int))
    for name,spec in (('ols',ols),('plain',plain)):
        Ms = found['soft labels',spec]
        rho = np.stack([(row_ranks(M)*far).sum(1)/(agree.K-1) for M in Ms])
        out[f'distance_{name}'] = rho.mean(0)
        if name=='plain': continue
        half = t.ppf(.975, len(Ms)-1)*rho.std(0, ddof=1)/len(Ms)**.5
        ranks = np.mean([row_ranks(M) for M in Ms], 0)
        null = np.stack([(ranks*far[p][:,p]).sum(1)/(agree.K-1) for p in perms])
        M = np.mean(Ms, 0)*(1-np.eye(agree.K))
        best = M.argmax(1)
        p = (1+(null>=rho.mean(0)).sum(0))/(1+len(perms))
        out.update(distance_low=rho.mean(0)-half, distance_high=rho.mean(0)+half, chance_high=np.quantile(null, .975, axis=0), p=p, p_fdr=false_discovery_control(p),
                   near=(M*agree.touch).sum(1)/M.sum(1), most_similar=[regions[o] for o in best], probability=M.max(1), touches=agree.touch[range(agree.K),best].astype(bool))
    return pd.DataFrame(out)

if __name__=='__main__':
    warnings.filterwarnings('ignore', 'Mean of empty slice')  # correlations have no shares
    folder = Path(sys.argv[1]) if len(sys.argv)>1 else here/'runs/studies/right-40/runs'
    regions,vol,_ = left_atlas()
    border,centre = borders(vol, len(regions)),centroids(regions)
    agree = Agreement(border>0, distances(centre))
    rng = np.random.default_rng(0)
    perms = [rng.permutation(agree.K) for _ in range(n_perm)]
    found = matrices(folder, regions)
    made = dict(versions=str(package_versions()))
    df = overall(agree, found, perms).assign(seeds=seeds, **made)
    write_csv(df, here/'anatomy.csv')
    write_csv(by_region(agree, found, perms, regions, centre).assign(**made), here/'anatomy_regions.csv')
    i,j = agree.pairs(np.arange(agree.K))
    S = found['soft labels',ols][0]
    write_csv(pd.DataFrame(dict(a=np.array(regions)[i], b=np.array(regions)[j], faces=border[i,j], distance_mm=agree.dist[i,j].round(2), S_ab=S[i,j].round(7), S_ba=S[j,i].round(7))).assign(**made), here/'anatomy_pairs.csv')
    print(df.pivot(index=['against','matrix','network'], columns='measure', values='mean').round(3).to_string())
