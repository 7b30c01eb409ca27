"What the scripts in benchmarks/ work out, on made-up input whose answer is known."
import importlib.util, sys
from pathlib import Path
import cv2, numpy as np, pandas as pd, pytest, torch
from scipy.stats import mannwhitneyu, spearmanr
from ols_fastai.core import load_tensors, save_tensors, write_csv
from ols_fastai.data.datasets import brain_regions
from ols_fastai.train.methods import METHODS
from ols_fastai.calibration.metrics import nll
from ols_fastai.calibration.temperature import fit_temperature
from ols_fastai.compare.results import run_file

sys.path.insert(0, str(Path(__file__).parent.parent/'benchmarks'))
import anatomy, common, compactness, cost, evidence, paper, studies

# --- common.py

def outputs(rng, n, sharpness, K=4):
    "Predictions that are right in most images, and true classes"
    y = torch.as_tensor(rng.integers(K, size=n))
    z = torch.as_tensor(rng.normal(size=(n,K)))+2*torch.eye(K)[y]
    return (sharpness*z).softmax(1),y

def a_run(seed, sharpness):
    rng = np.random.default_rng(seed)
    (valid_preds,valid_targs),(preds,targs) = (outputs(rng, n, sharpness) for n in (300,200))
    return dict(preds=preds, targs=targs, valid_preds=valid_preds, valid_targs=valid_targs)

def test_tuned_is_the_setting_with_the_least_nll_on_the_validation_images_of_that_seed(tmp_path):
    (tmp_path/'runs').mkdir()
    for seed,best in ((0,'ls:eps=0.1'),(1,'ls:eps=0.2')):
        for method in ('ls:eps=0.1','ls:eps=0.2'):
            run = a_run(seed, 2. if method==best else 8.)
            save_tensors(run_file(tmp_path, 'runs', method, seed), run, dict(method=method))
    assert [common.tuned(tmp_path, o, ['ls:eps=0.1','ls:eps=0.2']) for o in (0,1)]==['ls:eps=0.1','ls:eps=0.2']

def test_scaled_rows_are_fitted_to_validation_images_without_a_prior_and_judged_on_test_images():
    run = a_run(0, 8.)
    none,temperature,entropy = common.scaled_rows(run, entropy=True)
    assert [o['scaled'] for o in (none,temperature,entropy)]==['none','temperature','entropy']
    assert none['T']==1 and none['NLL']==pytest.approx(nll(run['preds'], run['targs']))
    T = fit_temperature(run['valid_preds'], run['valid_targs'], prior=None)
    assert temperature['T']==T and T>2
    by_hand = (run['preds'].log()/T).softmax(1)
    assert temperature['NLL']==pytest.approx(nll(by_hand, run['targs'])) and temperature['NLL']<none['NLL']
    assert [o['scaled'] for o in common.scaled_rows(run)]==['none','temperature']

def test_noisy_gives_the_share_asked_for_and_another_class(tmp_path):
    df = pd.DataFrame(dict(filename=[f'{o}.png' for o in range(400)], label=list('abcd')*100))
    write_csv(df, tmp_path/'right.csv')
    common.noisy(tmp_path/'right.csv', tmp_path/'wrong.csv', .2)
    wrong = pd.read_csv(tmp_path/'wrong.csv')
    changed = wrong.label!=df.label
    assert changed.sum()==80 and wrong.filename.equals(df.filename) and set(wrong.label)==set('abcd')
    assert len(set(zip(df.label[changed], wrong.label[changed])))==12, 'of every class to every other'

def test_small_mednist_valid_has_so_many_images_of_each_class(tmp_path):
    df = pd.DataFrame(dict(filename=[f'{o}.png' for o in range(90)], label=list('abc')*30))
    write_csv(df, tmp_path/'mednist_val.csv')
    df = pd.read_csv(common.small_mednist_valid(tmp_path, tmp_path/'new/valid.csv'))
    assert df.label.value_counts().to_dict()==dict(a=20, b=20, c=20)

def test_tables_say_what_they_were_made_with(tmp_path):
    common.write_table(pd.DataFrame(dict(a=[1,2])), 'x.csv', tmp_path)
    df = pd.read_csv(tmp_path/'x.csv')
    assert df.columns.tolist()==['a','versions'] and 'ols_fastai' in df.versions[0]

@pytest.mark.parametrize('fn', sorted((Path(__file__).parent.parent/'benchmarks').glob('*.py')), ids=lambda o: o.stem)
def test_every_script_imports_and_starts_nothing(fn):
    "An API that a script uses has not gone"
    spec = importlib.util.spec_from_file_location(f'script_{fn.stem}', fn)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))

# --- the tables of paper.py and studies.py

def committed(name): return pd.read_csv(Path(common.__file__).parent/name, nrows=1).columns.drop('versions').tolist()

def store(out, methods, seed):
    "Runs of made-up predictions; the sharper, the larger NLL"
    (out/'runs').mkdir(parents=True, exist_ok=True)
    for i,method in enumerate(methods):
        info = dict(method=method, seed=seed, seconds=1., settings=dict(epochs=2))
        save_tensors(run_file(out, 'runs', method, seed), dict(a_run(seed, 2.+i), S=torch.eye(4)), info)

def test_paper_takes_whole_seeds_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, 'runs', tmp_path)
    out = paper.folder('BrainRegions', 'small_vgg')
    methods = ['hard', *sum(paper.grid.values(), [])]
    store(out, methods, 0)
    store(out, methods[:-1], 1)
    df = paper.table()
    assert df.columns.tolist()==committed('paper.csv') and set(df.seed)=={0} and len(df)==7*3
    assert set(df.arch)=={'small_vgg'} and df[df.method=='Tf-KD tuned'].spec.unique().tolist()==['tfkd_reg:a=0.1']

def test_studies_has_the_columns_of_what_is_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, 'runs', tmp_path)
    monkeypatch.setattr(studies, 'wrong', lambda *args: 0.)
    methods = studies.studies['momentum'][.9][2]
    store(studies.folder('right', 40), methods.values(), 3)
    rows = list(studies.rows('momentum', .9, 'right', 40, methods))
    assert [o['scaled'] for o in rows]==['none','temperature'] and [*rows[0]]==committed('studies.csv')

# --- evidence.py

def test_what_targets_mixed_in_is_taken_out():
    pi = torch.tensor([[.7,.2,.1],[.1,.6,.3]], dtype=torch.float64)
    T = torch.tensor([[.8,.15,.05],[.1,.8,.1],[.05,.15,.8]], dtype=torch.float64)
    for found in (evidence.em(pi@T, T, 50), evidence.inverse(pi@T, T)): assert torch.allclose(found, pi, atol=.02)

def test_each_run_is_done_once_and_the_primary_family_first():
    todo = evidence.all_runs()
    assert len(todo)==len(set(todo)) and len({o.fn for o in todo})==len(todo)
    right = [o for o in todo if o.method=='OLS, folds' and o.labels=='right']
    assert pd.Series([o.data for o in right]).value_counts().to_dict()==dict(BrainRegions=20, MedNIST=70)
    assert {o.method for o in todo[:60]}==set(evidence.primary)
    pilots = {o.sample for k in evidence.settings for o in evidence.pilot_runs(k)}
    assert not pilots & {o.sample for o in todo}

def test_the_intervals_of_runs_and_images_are_those_of_simulated_effects():
    "An effect of .3 whose runs and images both vary: both intervals hold it, that of both is the wider one"
    rng = np.random.default_rng(0)
    b = rng.normal(size=(20,400))
    a = b+.3+.2*rng.normal(size=(20,1))+.5*rng.normal(size=400)
    w = rng.multinomial(400, np.full(400, 1/400), 500).astype(float)
    (low,high),(low1,high1) = evidence.both_drawn(a, b, w, 'NLL')
    assert low<.3<high and low<low1<a.mean()-b.mean()<high1<high
    flat = evidence.both_drawn(a, -a, w, '|gap|')
    assert np.allclose(flat, 0), 'confidence that is off by as much either way'

def test_a_comparison_takes_the_runs_that_both_have():
    rows = [dict(method=m, calibrated='20', sample=i, NLL=v+.1*i) for m,v in (('OLS',1.),('hard',2.)) for i in range(4)]
    df = pd.DataFrame(rows[:-1])
    d = evidence.difference(df, ('OLS','20'), ('hard','20'), 'NLL', {}, 'test')
    assert d['runs']==3 and d['difference']==pytest.approx(-1)
    assert evidence.difference(df, ('OLS','20'), ('LS','20'), 'NLL', {}, 'test') is None

# --- anatomy.py

# two layers of 3 x 2 voxels; -1 is no region
volume = np.stack([[[0,0],[1,2],[1,-1]], [[0,0],[0,0],[0,0]]], -1)

def test_borders_counts_faces_along_all_three_axes():
    """Regions 0 and 1: a face in the first layer, two to the second; 0 and 2: one and one; 1 and 2: one.

    What is no region has none"""
    assert anatomy.borders(volume, 3).tolist()==[[0,3,2],[3,0,1],[2,1,0]]

def test_distances_and_mean_by_class():
    assert anatomy.distances(np.array([[0,0,0],[3,4,0],[0,0,2.]]))[0].tolist()==[0,5,2]
    assert anatomy.mean_by_class(np.array([[1,2],[3,4],[10,20.]]), np.array([1,1,0])).tolist()==[[10,20],[2,3]]

K = 14

@pytest.fixture(scope='module')
def world():
    """Regions at random places, of which the nearest pairs touch.

    And soft labels that follow the distances, and some that know nothing of them"""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(K,3))
    dist = anatomy.distances(centre)
    touch = (dist<np.quantile(dist[~np.eye(K, dtype=bool)], .2)) & ~np.eye(K, dtype=bool)
    def soft(like):
        M = like*np.exp(.1*rng.normal(size=(K,K)))
        M = M*(1-np.eye(K))
        M = .4*M/M.sum(1, keepdims=True)
        return M+.6*np.eye(K)
    follows = [soft(np.exp(-dist)) for _ in range(3)]
    knows_nothing = [soft(rng.random((K,K))) for _ in range(3)]
    perms = [rng.permutation(K) for _ in range(199)]
    agree = anatomy.Agreement(touch, dist)
    return dict(centre=centre, agree=agree, follows=follows, knows_nothing=knows_nothing, perms=perms)

def test_agreement_is_what_scipy_and_loops_say(world):
    agree,M = world['agree'],world['follows'][0]
    a,d,auc,near,top = agree.measure([M])
    i,j = np.triu_indices(K, 1)
    x,touch = (M+M.T)[i,j],agree.touch[i,j]
    np.testing.assert_allclose(a, spearmanr(x, touch).statistic)
    np.testing.assert_allclose(d, spearmanr(x, -agree.dist[i,j]).statistic)
    np.testing.assert_allclose(auc, mannwhitneyu(x[touch>0], x[touch==0]).statistic/(touch>0).sum()/(touch==0).sum())
    shares = [sum(M[k,o] for o in range(K) if agree.touch[k,o])/(1-M[k,k]) for k in range(K)]
    np.testing.assert_allclose(near, np.mean(shares))
    assert top==np.mean([agree.touch[k,max((o for o in range(K) if o!=k), key=lambda o: M[k,o])] for k in range(K)])

def test_rows_that_give_nothing_to_others_and_correlations_have_no_share(world):
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
    follows,knows_nothing = world['follows'],world['knows_nothing']
    of_images = {(o,n): follows for o in ('mean prediction','confusions') for n in ('hard','ls:eps=0.1',anatomy.ols)}
    return {('soft labels',anatomy.ols): follows, ('soft labels',anatomy.plain): knows_nothing,
            ('mean images','none'): [M-.1 for M in knows_nothing], **of_images}

@pytest.mark.filterwarnings('ignore:Mean of empty slice')
def test_what_follows_distances_is_significant_and_what_does_not_is_not(world, found, monkeypatch):
    bootstrap = anatomy.Agreement.bootstrap
    monkeypatch.setattr(anatomy.Agreement, 'bootstrap', lambda self, Ms: bootstrap(self, Ms, 60))
    df = anatomy.overall(world['agree'], found, world['perms'])
    df = df.set_index(['matrix','network','against','measure']).sort_index()
    ols,plain = (df.loc['soft labels',o,'the atlas'] for o in (anatomy.ols,anatomy.plain))
    assert (ols.p==1/200).all() and ols['mean']['distance']>.9
    some = ols.loc[['adjacent','distance','near']]
    assert (some['mean']>some.chance_high).all()
    assert (plain.p>.05).all() and abs(plain['mean']['distance'])<.2
    for d in (ols,plain): assert (d.low<=d['mean']+.05).all() and (d['mean']<=d.high+.05).all() and (d.low<d.high).all()
    of_images = df.loc['mean images','none','the atlas']['mean']
    assert of_images[['near','top']].isna().tolist()==[True,False], 'correlations have no shares, but a largest entry'
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
    assert (df.distance_low<=df.distance_ols).all() and (df.distance_ols<=df.distance_high).all()
    assert (df.p_fdr>=df.p).all()
    assert df.distance_ols.mean()>.8 and (df.p_fdr<.05).mean()>.8 and abs(df.distance_plain.mean())<.2
    assert df.most_similar.tolist()==[regions[o] for o in M.argmax(1)]
    assert df.touches.tolist()==[bool(agree.touch[k,M[k].argmax()]) for k in range(K)]
    assert df.n_touching.tolist()==agree.touch.sum(1).tolist()

def test_row_ranks_leave_the_diagonal_out():
    assert anatomy.row_ranks(np.array([[9,1,2.],[5,9,3],[1,2,9]])).tolist()==[[0,-1,1],[1,0,-1],[-1,1,0]]

# --- studies.py

@pytest.fixture
def tiny_atlas(monkeypatch):
    "a touches b, b touches c, c touches d"
    monkeypatch.setattr(common, 'left_atlas', lambda: (['a','b','c','d'], np.array([[[0,1,2,3]]]), None))

@pytest.fixture
def lists(tmp_path):
    "The right labels"
    rows = [(f'{k}{i}.png', k) for k in 'abcd' for i in range(50)]
    write_csv(pd.DataFrame(rows, columns=['filename','label']), tmp_path/'train.csv')
    return tmp_path

@pytest.mark.parametrize('share', [.2,.35,1.])
def test_neighbours_gives_the_share_asked_for_and_labels_that_touch(tiny_atlas, lists, share):
    common.neighbours(lists/'train.csv', lists/'wrong.csv', share)
    a,b = pd.read_csv(lists/'train.csv'),pd.read_csv(lists/'wrong.csv')
    assert a.filename.equals(b.filename)
    changed = a.label!=b.label
    assert changed.sum()==share*200
    pairs = set(zip(a.label[changed], b.label[changed]))
    assert pairs=={('a','b'),('b','a'),('b','c'),('c','b'),('c','d'),('d','c')}

def test_neighbours_on_the_atlas(tmp_path):
    src = brain_regions()/'train.csv'
    common.neighbours(src, tmp_path/'wrong.csv', .2)
    a,b = pd.read_csv(src).label,pd.read_csv(tmp_path/'wrong.csv').label
    regions,vol,_ = anatomy.left_atlas()
    touch = anatomy.borders(vol, len(regions))>0
    changed = np.flatnonzero(a!=b)
    assert len(changed)==round(.2*len(a))
    assert all(touch[regions.index(a[o]),regions.index(b[o])] for o in changed)

def test_wrong_is_the_share_of_wrong_labels_that_a_run_sees(tiny_atlas, lists, monkeypatch):
    common.neighbours(lists/'train.csv', lists/'neighbours20.csv', .2)
    monkeypatch.setattr(studies, 'train_list', lambda labels: lists/f"{'train' if labels=='right' else labels}.csv")
    assert studies.wrong('neighbours20', 200, 0)==.2, 'with all images it is the share of the list'
    assert studies.wrong('right', 10, 0)==0
    right = pd.read_csv(lists/'train.csv').set_index('filename').label
    seen = studies.sample_per_class(pd.read_csv(lists/'neighbours20.csv'), 10, 3)
    n_wrong = sum(right[f]!=k for f,k in zip(seen.filename, seen.label))
    assert len(seen)==40 and studies.wrong('neighbours20', 10, 3)==n_wrong/40

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
    a,points = compactness.measured(tight, y, list('abc'), key, True)
    b,none = compactness.measured(loose, y, list('abc'), key)
    assert a['silhouette']>.9>b['silhouette'] and a['intra/inter']<.1<b['intra/inter'] and a['NC1']<.1<b['NC1']
    assert none==[] and [o['label'] for o in points]==[k for k in 'abc' for _ in range(12)]
    assert set(points[0])=={'data','arch','method','seed','label','x','y'}
    p = pd.DataFrame(points)
    on_map = compactness.feature_stats(p[['x','y']].to_numpy(copy=True), y)
    assert on_map['silhouette']>.5, 'classes that lie apart lie apart on the map'

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
    files = {o: tmp_path/f'{o}.csv' for o in ('train','valid','test')}
    args = dict(files, n_per_class=8, epochs=1, bs=8, size=32, num_workers=0)
    small = dict(regimes=lambda _: {'stripes': args}, folder=lambda data, arch: tmp_path/f'{data}-{arch}',
                 nets=['small_vgg'], seeds=2, default={'hard':'hard','OLS':'ols:alpha=0.5'})
    for k,v in small.items(): monkeypatch.setattr(compactness, k, v)
    compactness.run('')
    return tmp_path/'stripes-small_vgg'

def test_the_table_is_of_the_networks_that_were_measured(stripes):
    df,places = compactness.table('')
    r = pd.read_csv(stripes/'results.csv').query("scaled=='none' and seed.notna()")
    measured,compared = (dict(zip(zip(o[name], o.seed), o['Top-1 error %'])) for o,name in ((df,'spec'),(r,'method')))
    assert measured==pytest.approx(compared)
    assert len(df)==4 and df[['silhouette','intra/inter','NC1']].notna().all(axis=None) and df['NC1'].nunique()==4
    assert places.groupby(['method','label']).size().tolist()==[5]*6 and set(places.seed)=={0}
    # a seed that one method lacks is left out of all
    next((stripes/'runs').glob('ols*-1.safetensors')).unlink()
    assert compactness.complete({'stripes': None})==[0]
    # and weights that are not the run's are no news of it
    fn = stripes/'models'/'hard-0.safetensors'
    weights,info = load_tensors(fn)
    save_tensors(fn, {k: v*1.5 if v.is_floating_point() else v for k,v in weights.items()}, info)
    with pytest.raises(ValueError, match='hard-0.safetensors: the predictions are not those of the run'):
        compactness.table('')

# --- cost.py

def test_cost_goes_on_where_it_was_stopped():
    names,asked = ['hard','ols'],[]
    def measure(todo):
        for r in todo:
            asked.append(r)
            yield r,dict(hard=10., ols=10.+r)
    def row(method, what, repeat, made='now'):
        return dict(method=method, what=what, repeat=repeat, value=1., ratio=1., versions=made)
    def both(*args): return [row(o, *args) for o in names]
    lacks_one = [row('hard', 'peak MiB', 1)]
    df = pd.DataFrame([*both('seconds', 1, 'old'), *both('peak MiB', 2), *lacks_one, *both('peak MiB', 3, 'old')])
    *_,last = cost.go_on(df, 'peak MiB', 3, measure, 'now', names)
    assert asked==[1,3], 'repeat 1 lacked a method, 3 was made with other versions'
    n = last.groupby(['what','repeat']).size().to_dict()
    assert n=={('seconds',1):2, ('peak MiB',1):2, ('peak MiB',2):2, ('peak MiB',3):2}
    assert last[(last.method=='ols')&(last.repeat==3)].ratio.item()==1.3
    assert not list(cost.go_on(last, 'peak MiB', 3, measure, 'now', names)) and asked==[1,3]
