"Conformal sets: coverage, size, and agreement with slow definitions."
import importlib
import numpy as np, pandas as pd, pytest, torch
from scipy import stats
from hypothesis import given, settings, strategies as st
from ols_fastai.calibration.conformal import *
from test_scaling import logits_and_targs

# ---- conformal sets

def one_coverage(kind, miscoverage, n, m, seed):
    z,y = logits_and_targs(n+m, 5, T=1.5, seed=seed)           # over-confident: the promise needs no calibration
    p = z.softmax(1)
    s = ConformalSets(p[:n], y[:n], miscoverage, kind)
    return s.table(p[n:], y[n:]).iloc[0]

@pytest.mark.parametrize('miscoverage', [.05,.1,.3])
@pytest.mark.parametrize('kind', ['lac','aps','raps'])
def test_the_sets_cover_what_was_asked(kind, miscoverage):
    n,m,runs = 199,2000,40
    hits = sum(one_coverage(kind, miscoverage, n, m, s).coverage*m for s in range(runs))
    # the hits of one run are beta-binomial (Angelopoulos & Bates 2021, appendix C); the sum of 40 is about normal
    k = int(np.ceil((n+1)*(1-miscoverage)-1e-9)); law = stats.betabinom(m, k, n+1-k)
    assert abs(hits-runs*law.mean()) < 4*(runs*law.var())**.5 if kind=='lac' else hits-runs*law.mean() > -4*(runs*law.var())**.5

def test_aps_is_never_empty_and_larger():
    aps,lac = (pd.DataFrame([one_coverage(k, .1, 199, 1000, s) for s in range(20)]) for k in ('aps','lac'))
    assert (aps['empty']==0).all() and aps.coverage.mean()<.93 and aps['mean size'].mean()>lac['mean size'].mean()

def slow_scores(p, u, kind, lam, k_reg):
    p,out = p.double().numpy(),np.zeros(p.shape)
    for i,row in enumerate(p):
        order = sorted(range(len(row)), key=lambda k: (-row[k], k))
        for r,k in enumerate(order):
            out[i,k] = 1-row[k] if kind=='lac' else sum(row[o] for o in order[:r+1])-u[i]*row[k]
            if kind=='raps': out[i,k] += lam*max(0, r+1-k_reg)
    return out

@given(n=st.integers(1, 60), miscoverage=st.floats(.02, .9), kind=st.sampled_from(['lac','aps','raps']), K=st.integers(2, 6), ties=st.booleans(),
       by=st.sampled_from([None,'class','scanner']), with_ids=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings('ignore:.*thresholds')
def test_sets_by_the_definition(n, miscoverage, kind, K, ties, by, with_ids, seed):
    g = torch.Generator().manual_seed(seed)
    def make(n):
        z = 2*torch.randn(n, K, generator=g)
        ids = torch.randint(1, 9**9, (n,2), generator=g).numpy() if with_ids else None
        return (z.round() if ties else z).softmax(1),torch.randint(0, K, (n,), generator=g),ids,torch.randint(0, 2, (n,), generator=g).tolist()
    (p,y,ids,group),(q,_,q_ids,q_group) = make(n),make(7)
    if by=='scanner': q_group = [o if o in group else group[0] for o in q_group]
    s = ConformalSets(p, y, miscoverage, kind, by=group if by=='scanner' else by, seed=seed, lam=.1, k_reg=2, ids=ids)
    scores,new = (slow_scores(o, row_uniforms(o, seed, i).tolist(), kind, .1, 2) for o,i in ((p,ids),(q,q_ids)))
    sets = s(q, by=q_group if by=='scanner' else None, ids=q_ids).numpy()
    for i in range(7):
        for k in range(K):
            same = [j for j in range(n) if by is None or (by=='class' and y[j]==k) or (by=='scanner' and group[j]==q_group[i])]
            cal = sorted(scores[j,y[j]] for j in same)
            at = int(np.ceil(round((len(cal)+1)*(1-miscoverage), 6)))
            threshold = cal[at-1] if at<=len(cal) else np.inf
            if abs(new[i,k]-threshold)<1e-12: continue          # a sum in another order
            assert sets[i,k]==(new[i,k]<=threshold or (kind!='lac' and k==q[i].argmax()))

def saturated(n, K=56, seed=2, temper=25):
    "Predictions whose largest probability is 1 in fp32, some of them wrong"
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, K, generator=g); y = torch.randint(0, K, (n,), generator=g)
    z[torch.arange(n),y] += 3
    return (temper*z).softmax(1),y

@pytest.mark.parametrize('kind', ['aps','raps'])
@pytest.mark.filterwarnings('ignore:.*thresholds')
def test_saturated_predictions_have_small_sets(kind):
    p,y = saturated(2000)
    lac,aps = (ConformalSets(p[:1000], y[:1000], kind=k).table(p[1000:], y[1000:]).iloc[0] for k in ('lac',kind))
    assert aps['mean size']<1.5*lac['mean size'] and aps['mean size']<3 and aps.coverage>.87

def test_a_threshold_of_1_is_said():
    p,y = saturated(300, temper=1000)
    with pytest.warns(UserWarning, match=r'1 of 1 thresholds \(of all\) are 1 or more'): ConformalSets(p, torch.randint(0, 56, (300,)))
    with pytest.warns(UserWarning, match='infinite'): ConformalSets(p[:8], y[:8])

def mean_coverage(make, runs=40):
    "Of each group, over runs"
    return pd.DataFrame([make(s).coverage for s in range(runs)]).mean()

@pytest.mark.parametrize('kind', ['lac','aps'])
def test_each_class_and_each_group_is_covered(kind):
    def data(seed):
        z,y = logits_and_targs(2400, 3, w=torch.tensor([.4,1.,2.]), seed=seed)
        group = np.where(np.random.default_rng(seed).random(2400)<.3, 'MR', 'CT')
        z[group=='MR'] *= 3                                    # over-confident on one scanner alone
        return z.softmax(1),y,group
    def table(seed, by):
        p,y,group = data(seed)
        names = group if by=='scanner' else y.numpy()
        s = ConformalSets(p[:600], y[:600], .1, kind, by={'scanner':group[:600], 'class':'class', None:None}[by])
        return s.table(p[600:], y[600:], by=names[600:])
    for by in ('class','scanner'):
        got = mean_coverage(lambda s: table(s, by))
        assert (got>.885).all(), got
        if kind=='lac': assert (got<.93).all(), got
    if kind=='lac': assert mean_coverage(lambda s: table(s, None)).min()<.88   # what one threshold does

def patients(seed, n=60, each=10):
    "Like images of each patient"
    z,y = logits_and_targs(n, 5, seed=seed)
    g = torch.Generator().manual_seed(seed)
    z = z.repeat_interleave(each, 0)+.1*torch.randn(n*each, 5, generator=g)
    return z.softmax(1),y.repeat_interleave(each),np.arange(n).repeat(each)

def test_one_image_of_each_patient_calibrates():
    p,y,who = patients(0)
    s = ConformalSets(p, y, groups=who)
    assert s.n==60
    order = np.random.default_rng(0).permutation(600)
    first = np.sort(order[~pd.Series(who[order]).duplicated()])
    assert s.threshold==ConformalSets(p[first], y[first]).threshold and (who[first]==np.arange(60)).all()
    # by patients the promise holds; with all images as if they were independent the threshold is no surer than with 60
    cover = [ConformalSets(p, y, groups=who)(q).gather(1, t[:,None]).double().mean().item() for (p,y,who),(q,t,_) in ((patients(s),patients(s+1000, 400, 1)) for s in range(60))]
    assert .885<np.mean(cover)<.93

def test_the_interval_by_patients_holds_the_coverage():
    cal = patients(999, 300, 1)
    s = ConformalSets(*cal[:2])
    true = s.table(*patients(7, 20000, 1)[:2]).coverage.item()
    held = dict(images=0, patients=0)
    for seed in range(100):
        p,y,who = patients(seed+5000)
        for k,groups in (('images',None),('patients',who)):
            r = s.table(p, y, groups=groups).iloc[0]
            held[k] += r.low<=true<=r.high
            assert 0<=r.low<=r.coverage<=r.high<=1
    assert held['patients']>=91 and held['images']<75

def test_coverage_by_group_and_its_interval():
    z,y = logits_and_targs(600, 4)
    p = z.softmax(1); s = ConformalSets(p[:300], y[:300])
    by = np.where(np.arange(300)%3==0, 'MR', 'CT')
    t,sets = s.table(p[300:], y[300:], by),s(p[300:])
    for name in ('MR','CT'):
        hit = sets[torch.arange(300),y[300:]].numpy()[by==name]
        r = t.loc[name]; ci = stats.binomtest(int(hit.sum()), len(hit)).proportion_ci()
        np.testing.assert_allclose([r.n,r.coverage,r.low,r.high,r['mean size']], [len(hit),hit.mean(),ci.low,ci.high,sets.sum(1).numpy()[by==name].mean()])

def test_sets_are_not_judged_on_the_images_that_calibrated_them():
    z,y = logits_and_targs(300, 4); p = z.softmax(1)
    ids = np.stack([np.arange(1, 301),np.zeros(300)], 1).astype(np.int64)
    s = ConformalSets(p[:150], y[:150], ids=ids[:150])
    for o in (slice(0,150), slice(20,40)):
        with pytest.raises(ValueError, match='calibrated on'): s.table(p[o], y[o], ids=ids[o])
    s.table(p[150:], y[150:], ids=ids[150:])

@pytest.mark.parametrize('what', ['collapsed','perfect','rounded'])
def test_equal_predictions_are_not_equal_images(what):
    z,y = logits_and_targs(400, 4); p = z.softmax(1)
    if what=='collapsed': p = torch.tensor([[.4,.3,.2,.1]]).repeat(400, 1)
    if what=='perfect': p = torch.eye(4)[y]
    if what=='rounded': p = p.argmax(1)[:,None].eq(torch.arange(4))*.7+.075
    r = ConformalSets(p[:200], y[:200]).table(p[200:], y[200:]).iloc[0]
    assert r.n==200 and r.coverage>.8

# ---- other people's

@pytest.mark.parametrize('by', [None,'class','scanner'])
@pytest.mark.filterwarnings('ignore:.*thresholds')
@pytest.mark.references
def test_sets_as_crepes_has_them(by):
    "LAC, for all images, each class and each scanner. 93 %: where (n+1) times it is a whole number, theirs depends on rounding"
    crepes = importlib.import_module('crepes')
    z,y = logits_and_targs(900, 4, T=1.5, seed=0)
    p,scanner = z.softmax(1).double(),np.arange(900)%3
    s = ConformalSets(p[:500], y[:500], .07, 'lac', by=scanner[:500].tolist() if by=='scanner' else by)
    ours = s(p[500:], by=scanner[500:].tolist() if by=='scanner' else None).numpy()
    own,new = (1-p[:500].gather(1, y[:500,None])[:,0]).numpy(),(1-p[500:]).numpy()
    def theirs(of, new, fit_bins=None, new_bins=None):
        return crepes.ConformalClassifier().fit(own[of], bins=fit_bins).predict_set(new, bins=new_bins, confidence=.93, smoothing=False).astype(bool)
    if by=='class': sets = np.concatenate([theirs((y[:500]==k).numpy(), new[:,[k]]) for k in range(4)], 1)
    else: sets = theirs(slice(None), new, *((scanner[:500],scanner[500:]) if by else ()))
    assert (ours==sets).all() and .1<ours.mean()<.9
