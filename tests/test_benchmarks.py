"What the scripts in benchmarks/ work out, on made-up input whose answer is known."
import sys
from pathlib import Path
import cv2, numpy as np, pandas as pd, pytest
from scipy.stats import mannwhitneyu, spearmanr
from ols_fastai.core import load_tensors, save_tensors, write_csv
from ols_fastai.data.datasets import brain_regions
from ols_fastai.train.methods import METHODS

sys.path.insert(0, str(Path(__file__).parent.parent/'benchmarks'))
import anatomy, compactness, cost, studies

# --- anatomy.py

# two layers of 3 x 2 voxels; -1 is no region
volume = np.stack([[[0,0],[1,2],[1,-1]], [[0,0],[0,0],[0,0]]], -1)

def test_borders_counts_faces_along_all_three_axes():
    "Regions 0 and 1: a face in the first layer, two to the second; 0 and 2: one and one; 1 and 2: one, and what is no region has none"
    assert anatomy.borders(volume, 3).tolist()==[[0,3,2],[3,0,1],[2,1,0]]

def test_distances_and_mean_by_class():
    assert anatomy.distances(np.array([[0,0,0],[3,4,0],[0,0,2.]]))[0].tolist()==[0,5,2]
    assert anatomy.mean_by_class(np.array([[1,2],[3,4],[10,20.]]), np.array([1,1,0])).tolist()==[[10,20],[2,3]]

K = 14

@pytest.fixture(scope='module')
def world():
    "Regions at random places, of which the nearest pairs touch; soft labels that follow the distances, and some that know nothing of them"
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(K,3))
    dist = anatomy.distances(centre)
    touch = (dist<np.quantile(dist[~np.eye(K, dtype=bool)], .2)) & ~np.eye(K, dtype=bool)
    def soft(like):
        M = like*np.exp(.1*rng.normal(size=(K,K)))
        M = M*(1-np.eye(K))
        M = .4*M/M.sum(1, keepdims=True)
        return M+.6*np.eye(K)
    return dict(centre=centre, agree=anatomy.Agreement(touch, dist), follows=[soft(np.exp(-dist)) for _ in range(3)], knows_nothing=[soft(rng.random((K,K))) for _ in range(3)],
                perms=[rng.permutation(K) for _ in range(199)])

def test_agreement_is_what_scipy_and_loops_say(world):
    agree,M = world['agree'],world['follows'][0]
    a,d,auc,near,top = agree.measure([M])
    i,j = np.triu_indices(K, 1)
    x,touch = (M+M.T)[i,j],agree.touch[i,j]
    np.testing.assert_allclose(a, spearmanr(x, touch).statistic)
    np.testing.assert_allclose(d, spearmanr(x, -agree.dist[i,j]).statistic)
    np.testing.assert_allclose(auc, mannwhitneyu(x[touch>0], x[touch==0]).statistic/(touch>0).sum()/(touch==0).sum())
    np.testing.assert_allclose(near, np.mean([sum(M[k,o] for o in range(K) if agree.touch[k,o])/(1-M[k,k]) for k in range(K)]))
    assert top==np.mean([agree.touch[k,max((o for o in range(K) if o!=k), key=lambda o: M[k,o])] for k in range(K)])

def test_rows_that_give_nothing_away_and_correlations_have_no_share(world):
    M = world['follows'][0].copy()
    M[2] = np.eye(K)[2]
    share,best = world['agree'].rows(M)
    assert np.isnan(share[2]).all() and np.isnan(best[2]).all() and np.isfinite(np.delete(share, 2, 0)).all()
    share,best = world['agree'].rows(M-.1)
    assert np.isnan(share).all() and (best.sum(1)==1).all()

def test_chance_is_the_measure_with_the_regions_renamed(world):
    agree,Ms,p = world['agree'],world['follows'],world['perms'][0]
    np.testing.assert_allclose(agree.by_chance(Ms, [np.arange(K)])[0], agree.measure(Ms))
    renamed = anatomy.Agreement(agree.touch[p][:,p], agree.dist[p][:,p])
    np.testing.assert_allclose(agree.by_chance(Ms, [p])[0], renamed.measure(Ms))

@pytest.fixture(scope='module')
def found(world):
    out = {('soft labels',anatomy.ols): world['follows'], ('soft labels',anatomy.plain): world['knows_nothing'], ('mean images','none'): [M-.1 for M in world['knows_nothing']]}
    return {**out, **{(o,n): world['follows'] for o in ('mean prediction','confusions') for n in ('hard','ls:eps=0.1',anatomy.ols)}}

@pytest.mark.filterwarnings('ignore:Mean of empty slice')
def test_what_follows_distances_is_beyond_chance_and_what_does_not_is_not(world, found, monkeypatch):
    bootstrap = anatomy.Agreement.bootstrap
    monkeypatch.setattr(anatomy.Agreement, 'bootstrap', lambda self, Ms: bootstrap(self, Ms, 60))
    df = anatomy.overall(world['agree'], found, world['perms']).set_index(['matrix','network','against','measure']).sort_index()
    ols,plain = (df.loc['soft labels',o,'the atlas'] for o in (anatomy.ols,anatomy.plain))
    assert (ols.p==1/200).all() and (ols.loc[['adjacent','distance','near'],'mean']>ols.loc[['adjacent','distance','near'],'chance_high']).all() and ols['mean']['distance']>.9
    assert (plain.p>.05).all() and abs(plain['mean']['distance'])<.2
    for d in (ols,plain): assert (d.low<=d['mean']+.05).all() and (d['mean']<=d.high+.05).all() and (d.low<d.high).all()
    assert df.loc['mean images','none','the atlas']['mean'][['near','top']].isna().tolist()==[True,False], 'correlations have no shares, but a largest entry'
    diff = df.loc['soft labels',anatomy.ols,f'soft labels {anatomy.plain}']
    np.testing.assert_allclose(diff['mean'], ols['mean']-plain['mean'])
    assert diff.low['distance']>0
    same = df.loc['confusions',anatomy.ols,'confusions hard']
    assert not same[['mean','low','high']].any(axis=None), 'the same matrices, drawn alike'

def test_each_region_by_itself(world, found):
    regions = [f'region {o}' for o in range(K)]
    df = anatomy.by_region(world['agree'], found, world['perms'], regions, world['centre'])
    M,agree = np.mean(world['follows'], 0)*(1-np.eye(K)),world['agree']
    for k in range(K):
        off = np.arange(K)!=k
        rho = np.mean([spearmanr(o[k,off], -agree.dist[k,off]).statistic for o in world['follows']])
        np.testing.assert_allclose(df.distance_ols[k], rho)
    assert (df.distance_low<=df.distance_ols).all() and (df.distance_ols<=df.distance_high).all() and (df.p_fdr>=df.p).all()
    assert df.distance_ols.mean()>.8 and (df.p_fdr<.05).mean()>.8 and abs(df.distance_plain.mean())<.2
    assert df.most_similar.tolist()==[regions[o] for o in M.argmax(1)] and df.touches.tolist()==[bool(agree.touch[k,M[k].argmax()]) for k in range(K)]
    assert df.n_touching.tolist()==agree.touch.sum(1).tolist()

def test_row_ranks_leave_the_diagonal_out():
    assert anatomy.row_ranks(np.array([[9,1,2.],[5,9,3],[1,2,9]])).tolist()==[[0,-1,1],[1,0,-1],[-1,1,0]]

# --- studies.py

@pytest.fixture
def tiny_atlas(monkeypatch): monkeypatch.setattr(studies, 'left_atlas', lambda: (['a','b','c','d'], np.array([[[0,1,2,3]]]), None))  # a touches b, b touches c, c touches d

@pytest.fixture
def lists(tmp_path):
    "The right labels"
    write_csv(pd.DataFrame(dict(filename=[f'{k}{i}.png' for k in 'abcd' for i in range(50)], label=[k for k in 'abcd' for i in range(50)])), tmp_path/'train.csv')
    return tmp_path

@pytest.mark.parametrize('share', [.2,.35,1.])
def test_neighbours_gives_the_share_asked_for_and_labels_that_touch(tiny_atlas, lists, share):
    studies.neighbours(lists/'train.csv', lists/'wrong.csv', share)
    a,b = pd.read_csv(lists/'train.csv'),pd.read_csv(lists/'wrong.csv')
    assert a.filename.equals(b.filename)
    changed = a.label!=b.label
    assert changed.sum()==share*200
    pairs = set(zip(a.label[changed], b.label[changed]))
    assert pairs=={('a','b'),('b','a'),('b','c'),('c','b'),('c','d'),('d','c')}

def test_neighbours_on_the_atlas(tmp_path):
    src = brain_regions()/'train.csv'
    studies.neighbours(src, tmp_path/'wrong.csv', .2)
    a,b = pd.read_csv(src).label,pd.read_csv(tmp_path/'wrong.csv').label
    regions,vol,_ = anatomy.left_atlas()
    touch = anatomy.borders(vol, len(regions))>0
    changed = np.flatnonzero(a!=b)
    assert len(changed)==round(.2*len(a))
    assert all(touch[regions.index(a[o]),regions.index(b[o])] for o in changed)

def test_wrong_is_the_share_of_wrong_labels_that_a_run_sees(tiny_atlas, lists, monkeypatch):
    studies.neighbours(lists/'train.csv', lists/'neighbours20.csv', .2)
    monkeypatch.setattr(studies, 'train_list', lambda labels: lists/f"{'train' if labels=='right' else labels}.csv")
    assert studies.wrong('neighbours20', 200, 0)==.2, 'with all images it is the share of the list'
    assert studies.wrong('right', 10, 0)==0
    right = pd.read_csv(lists/'train.csv').set_index('filename').label
    seen = studies.sample_per_class(pd.read_csv(lists/'neighbours20.csv'), 10, 3)
    assert len(seen)==40 and studies.wrong('neighbours20', 10, 3)==sum(right[f]!=k for f,k in zip(seen.filename, seen.label))/40

def test_the_studies_method_is_not_left_behind(): assert 'ols_every' not in METHODS

# --- compactness.py

def test_drawn_takes_classes_evenly_and_the_first_images_of_each():
    y = np.arange(56).repeat(4)
    i = compactness.drawn(y, 8, 3)
    assert len(i)==24 and sorted(set(y[i]))==[0,7,14,21,28,35,42,49] and i[:3].tolist()==[0,1,2]
    assert compactness.drawn(np.array([0,1,1,2,1,2]), 8, 2).tolist()==[0,1,2,3,5], 'few classes are all shown'

def test_measured_tells_tight_from_loose():
    rng = np.random.default_rng(0)
    y = np.arange(3).repeat(12)
    tight,loose = (4*np.eye(3)[y]+s*rng.normal(size=(36,3)) for s in (.1,2))
    key = dict(data='made up', arch='none', method='hard', seed=0, spec='hard')
    (a,points),(b,none) = compactness.measured(tight, y, list('abc'), key, True),compactness.measured(loose, y, list('abc'), key)
    assert a['silhouette']>.9>b['silhouette'] and a['intra/inter']<.1<b['intra/inter'] and a['NC1']<.1<b['NC1'] and none==[]
    assert [o['label'] for o in points]==[k for k in 'abc' for _ in range(12)] and set(points[0])=={'data','arch','method','seed','label','x','y'}
    p = pd.DataFrame(points)
    assert compactness.feature_stats(p[['x','y']].to_numpy(copy=True), y)['silhouette']>.5, 'classes that lie apart lie apart on the map'

@pytest.fixture
def stripes(tmp_path, monkeypatch):
    "Three classes of noisy stripes, two methods of one network, one epoch, two seeds"
    rng = np.random.default_rng(0)
    for split,n in dict(train=8, valid=4, test=5).items():
        rows = []
        for k in range(3):
            for i in range(n):
                a = rng.integers(0, 120, (32,32)).astype(np.uint8)
                a[::k+2] += 100
                cv2.imwrite(str(tmp_path/f'{split}_{k}_{i}.png'), a)
                rows.append((f'{split}_{k}_{i}.png', f'every {k+2}'))
        write_csv(pd.DataFrame(rows, columns=['filename','label']), tmp_path/f'{split}.csv')
    args = dict({o: tmp_path/f'{o}.csv' for o in ('train','valid','test')}, n_per_class=8, epochs=1, bs=8, size=32, num_workers=0)
    for k,v in dict(regimes=lambda _: {'stripes': args}, folder=lambda data, arch: tmp_path/f'{data}-{arch}', nets=['small_vgg'], seeds=2, default={'hard':'hard','OLS':'ols:alpha=0.5'}).items():
        monkeypatch.setattr(compactness, k, v)
    compactness.run('')
    return tmp_path/'stripes-small_vgg'

def test_the_table_is_of_the_networks_that_were_measured(stripes):
    df,places = compactness.table('')
    r = pd.read_csv(stripes/'results.csv').query("scaled=='none'")
    assert dict(zip(zip(df.spec, df.seed), df['Top-1 error %']))==pytest.approx(dict(zip(zip(r.method, r.seed), r['Top-1 error %'])))
    assert len(df)==4 and df[['silhouette','intra/inter','NC1']].notna().all(axis=None) and df['NC1'].nunique()==4
    assert places.groupby(['method','label']).size().tolist()==[5]*6 and set(places.seed)=={0}
    # a seed that one method lacks is left out of all
    next((stripes/'runs').glob('ols*-1.safetensors')).unlink()
    assert compactness.complete({'stripes': None})==[0]
    # and weights that are not the run's are no news of it
    fn = stripes/'models'/'hard-0.safetensors'
    weights,info = load_tensors(fn)
    save_tensors(fn, {k: v*1.5 if v.is_floating_point() else v for k,v in weights.items()}, info)
    with pytest.raises(ValueError, match='hard-0.safetensors: the predictions are not those of the run'): compactness.table('')

# --- cost.py

def test_cost_goes_on_where_it_was_stopped():
    names,asked = ['hard','ols'],[]
    def measure(todo):
        for r in todo:
            asked.append(r)
            yield r,dict(hard=10., ols=10.+r)
    def row(method, what, repeat, made='now'): return dict(method=method, what=what, repeat=repeat, value=1., ratio=1., versions=made)
    df = pd.DataFrame([*(row(o, 'seconds', 1, 'old') for o in names), *(row(o, 'peak MiB', 2) for o in names), row('hard', 'peak MiB', 1), *(row(o, 'peak MiB', 3, 'old') for o in names)])
    *_,last = cost.go_on(df, 'peak MiB', 3, measure, 'now', names)
    assert asked==[1,3], 'repeat 1 lacked a method, 3 was made with other versions'
    assert last.groupby(['what','repeat']).size().to_dict()=={('seconds',1):2, ('peak MiB',1):2, ('peak MiB',2):2, ('peak MiB',3):2}
    assert last[(last.method=='ols')&(last.repeat==3)].ratio.item()==1.3
    assert not list(cost.go_on(last, 'peak MiB', 3, measure, 'now', names)) and asked==[1,3]
