"""Do the soft labels learn anatomy? What OLS learns on BrainRegions, against which regions touch in the AAL atlas
and how far apart their centroids are.

    OMP_NUM_THREADS=1 python benchmarks/studies.py run  # the trained networks, kept in benchmarks/runs (not committed)
    python benchmarks/anatomy.py [FOLDER]  # 2 minutes; FOLDER has the runs, default: benchmarks/runs/studies/right-40

Writes anatomy.csv (each matrix's agreement with the atlas), anatomy_regions.csv (the same a region, for OLS) and
anatomy_pairs.csv (the soft labels of one run with the atlas, for the picture). Five matrices of a network are looked
at, the mean of 5 seeds each: its soft labels, learnt from training images (left hemisphere; with alpha 1 OLS only
watches, so that these are a plain network's), the mean prediction and the confusions of each region's held-out
images (right hemisphere, validation and test); and without a network how similar the regions' mean training images
are. The agreement is over all pairs of regions, of the matrix without its diagonal, made symmetric. Intervals:
bootstrap over regions and seeds (`near` and `top` over rows). Chance: Mantel's test, the regions' names permuted in
the atlas."""
import sys, warnings
from pathlib import Path
import cv2, numpy as np, pandas as pd, torch
from scipy.stats import false_discovery_control, rankdata, t
from common import borders, left_atlas, load_run, runs, seeds, write_table
from ols_fastai.data.datasets import brain_regions, region_voxels
from ols_fastai.data.splits import sample_per_class

n_boot,n_perm = 1000,4999
plain = 'ols:alpha=1.0'  # trained on hard labels alone; the soft labels are learnt and not used
ols = 'ols:alpha=0.5'

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

def _load(folder, method, regions):
    "Tensors of a method's runs. Raises `ValueError` if they were trained on other classes than the atlas's"
    for seed in range(seeds):
        tensors,info = load_run(folder, method, seed)
        if info['vocab']!=regions:
            raise ValueError(f"{folder}: {method}, seed {seed} was trained on other classes than the atlas's")
        yield tensors

def _held_out(tensors):
    "Predictions and true classes of the other hemisphere"
    preds = torch.cat([tensors['valid_preds'],tensors['preds']]).double().numpy()
    return preds,torch.cat([tensors['valid_targs'],tensors['targs']]).numpy()

def matrices(folder, regions):
    "(matrix, network) -> one matrix (K,K) a seed"
    eye,out = np.eye(len(regions)),{}
    for method in (*(f'ols:alpha={a}' for a in (.1,.3,.5,.7,.9)), plain):
        out['soft labels',method] = [o['S'].double().numpy() for o in _load(folder, method, regions)]
    for method in ('hard','ls:eps=0.1',ols):
        held_out = [_held_out(o) for o in _load(folder, method, regions)]
        out['mean prediction',method] = [mean_by_class(p, y) for p,y in held_out]
        out['confusions',method] = [mean_by_class(eye[p.argmax(1)], y) for p,y in held_out]
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

    - adjacent, distance: Spearman's correlation with touching (0 or 1) and with minus the distance of the centroids
    - auc: chance that of two pairs, one that touches and one that does not, the touching one has the larger entry
    - near: share of a row's sum off the diagonal that goes to touching regions
    - top: share of the rows whose largest entry off the diagonal is a touching region"""
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
        auc = (ranks[0,touch>0].mean()-(n1+1)/2)/(len(touch)-n1)
        return ranks[1]@standard(touch)/len(touch), ranks[1]@standard(far)/len(touch), auc

    def rows(self, M):
        """Each row's shares off the diagonal, and 1 at the largest of them (2,K,K).

        Without a number where a row gives nothing to others, such as that of a class without confusions.
        Where entries are below 0 (correlations) there are no shares"""
        diagonal = np.eye(self.K)>0
        M = np.where(diagonal, 0, M)
        largest = np.eye(self.K)[np.where(diagonal, -np.inf, M).argmax(1)]
        if M.min()<0: return np.stack([np.full_like(M, np.nan), largest])
        total = M.sum(1, keepdims=True)
        gives = total>0
        share = np.where(gives, M, np.nan)/np.where(gives, total, 1)
        return np.stack([share, np.where(gives, largest, np.nan)])

    def _of_one(self, M, idx, pairs, touch, far):
        by_row = (self.rows(M)*self.touch).sum(-1)[:,idx]
        return [*self.of_pairs(self.ranks(M, *pairs), touch, far), *np.nanmean(by_row, 1)]

    def measure(self, Ms, idx=None):
        "All measures, over all regions or over those in `idx`"
        idx = np.arange(self.K) if idx is None else idx
        pairs = self.pairs(idx)
        touch,far = self.touch[pairs],rankdata(-self.dist[pairs])
        return np.mean([self._of_one(M, idx, pairs, touch, far) for M in Ms], 0)

    def by_chance(self, Ms, perms):
        """All measures with the regions renamed (permutations,measures).

        They are linear in ranks and shares, so that these are averaged first"""
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
        "Regions and seeds resampled, the same for all matrices (n,measures)"
        rng,out = np.random.default_rng(0),[]
        for _ in range(n):
            some = [Ms[s] for s in rng.integers(len(Ms), size=len(Ms))]
            out.append(self.measure(some, rng.integers(self.K, size=self.K)))
        return np.stack(out)

def _p_values(null, means):
    "Share of permutations that do as well, of each measure"
    p = (1+(null>=means).sum(0))/(1+len(null))
    return np.where(np.isnan(means), np.nan, p)

def _measure_rows(about, mean, boot, **others):
    "A row a measure"
    lo,hi = np.quantile(boot, [.025,.975], axis=0)
    for k,measure in enumerate(Agreement.names):
        yield dict(**about, measure=measure, mean=mean[k], low=lo[k], high=hi[k], **{a: v[k] for a,v in others.items()})

# whose measures are subtracted: of these, those
differences = [(('soft labels',ols),('soft labels',plain)),
               *(((o,ols),(o,n)) for o in ('mean prediction','confusions') for n in ('hard','ls:eps=0.1')),
               (('soft labels',plain),('mean images','none'))]

def overall(agree, found, perms):
    "A row a matrix and measure, and one for each difference that is asked about"
    rows,boots,means = [],{},{}
    def about(key, against): return dict(matrix=key[0], network=key[1], against=against)
    for key,Ms in found.items():
        means[key],boots[key] = agree.measure(Ms),agree.bootstrap(Ms)
        null = agree.by_chance(Ms, perms)
        chance = dict(chance=null.mean(0), chance_high=np.quantile(null, .975, axis=0), p=_p_values(null, means[key]))
        rows += _measure_rows(about(key, 'the atlas'), means[key], boots[key], **chance)
    for a,b in differences: rows += _measure_rows(about(a, ' '.join(b)), means[a]-means[b], boots[a]-boots[b])
    return pd.DataFrame(rows)

def _with_distance(Ms, far, K):
    "Rank correlation of each row with nearness, one row of it a seed"
    return np.stack([(row_ranks(M)*far).sum(1)/(K-1) for M in Ms])

def _interval(rho):
    "Half of the t-interval over seeds"
    n = len(rho)
    return t.ppf(.975, n-1)*rho.std(0, ddof=1)/n**.5

def by_region(agree, found, perms, regions, centre):
    "Each region's row of the soft labels against its row of the atlas"
    K,far,Ms = agree.K,row_ranks(-agree.dist),found['soft labels',ols]
    rho,of_plain = (_with_distance(found['soft labels',o], far, K) for o in (ols,plain))
    mean,half = rho.mean(0),_interval(rho)
    ranks = np.mean([row_ranks(M) for M in Ms], 0)
    null = np.stack([(ranks*far[p][:,p]).sum(1)/(K-1) for p in perms])
    p = _p_values(null, mean)
    M = np.mean(Ms, 0)*(1-np.eye(K))
    best = M.argmax(1)
    return pd.DataFrame(dict(
        region=regions, **dict(zip('xyz', centre.T)), n_touching=agree.touch.sum(1).astype(int), distance_ols=mean,
        distance_low=mean-half, distance_high=mean+half, chance_high=np.quantile(null, .975, axis=0), p=p,
        p_fdr=false_discovery_control(p), near=(M*agree.touch).sum(1)/M.sum(1), most_similar=[regions[o] for o in best],
        probability=M.max(1), touches=agree.touch[range(K),best].astype(bool), distance_plain=of_plain.mean(0)))

def by_pair(agree, S, regions, border):
    "Each pair of regions: the soft label in both directions, and what the atlas says"
    i,j = agree.pairs(np.arange(agree.K))
    names = np.array(regions)
    return pd.DataFrame(dict(a=names[i], b=names[j], faces=border[i,j], distance_mm=agree.dist[i,j].round(2),
                             S_ab=S[i,j].round(7), S_ba=S[j,i].round(7)))

def main(folder=runs/'studies/right-40'):
    warnings.filterwarnings('ignore', 'Mean of empty slice')  # correlations have no shares
    regions,vol,_ = left_atlas()
    border,centre = borders(vol, len(regions)),centroids(regions)
    agree = Agreement(border>0, distances(centre))
    rng = np.random.default_rng(0)
    perms = [rng.permutation(agree.K) for _ in range(n_perm)]
    found = matrices(Path(folder), regions)
    df = overall(agree, found, perms).assign(seeds=seeds)
    write_table(df, 'anatomy.csv')
    write_table(by_region(agree, found, perms, regions, centre), 'anatomy_regions.csv')
    write_table(by_pair(agree, found['soft labels',ols][0], regions, border), 'anatomy_pairs.csv')
    print(df.pivot(index=['against','matrix','network'], columns='measure', values='mean').round(3).to_string())

if __name__=='__main__': main(*sys.argv[1:])
