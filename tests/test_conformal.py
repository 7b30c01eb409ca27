"Conformal sets: coverage, size, and agreement with slow definitions."
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
@pytest.mark.parametrize('kind', ['lac','aps'])
def test_the_sets_cover_what_was_asked(kind, miscoverage):
    n,m,runs = 199,2000,40
    hits = sum(one_coverage(kind, miscoverage, n, m, s).coverage*m for s in range(runs))
    # the hits of one run are beta-binomial (Angelopoulos & Bates 2021, appendix C); the sum of 40 is about normal
    k = int(np.ceil((n+1)*(1-miscoverage)-1e-9)); law = stats.betabinom(m, k, n+1-k)
    assert abs(hits-runs*law.mean()) < 4*(runs*law.var())**.5 if kind=='lac' else hits-runs*law.mean() > -4*(runs*law.var())**.5

def test_aps_is_never_empty_and_larger():
    aps,lac = (pd.DataFrame([one_coverage(k, .1, 199, 1000, s) for s in range(20)]) for k in ('aps','lac'))
    assert (aps['empty']==0).all() and aps.coverage.mean()<.93 and aps['mean size'].mean()>lac['mean size'].mean()

@given(n=st.integers(1, 60), miscoverage=st.floats(.02, .9), kind=st.sampled_from(['lac','aps']), K=st.integers(2, 6), ties=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=120, deadline=None)
def test_sets_by_the_definition(n, miscoverage, kind, K, ties, seed):
    g = torch.Generator().manual_seed(seed)
    def make(n):
        z = 2*torch.randn(n, K, generator=g)
        return (z.round() if ties else z).softmax(1), torch.randint(0, K, (n,), generator=g)
    (p,y),(q,_) = make(n),make(7)
    s = ConformalSets(p, y, miscoverage, kind)
    def scores(p):
        p,out = p.double().numpy(),np.zeros(p.shape)
        if kind=='lac': return 1-p
        for i,row in enumerate(p):
            order = np.argsort(-row, kind='stable')
            out[i,order] = np.cumsum(row[order])
        return out
    cal = np.sort(scores(p)[np.arange(n),y.numpy()])
    k = int(np.ceil(round((n+1)*(1-miscoverage), 6)))
    assert s.threshold==(np.inf if k>n else cal[k-1])
    sets = s(q).numpy()
    low = scores(q)<=s.threshold
    if kind=='lac': assert (sets==low).all()
    else:
        low[np.arange(7),q.argmax(1).numpy()] = True          # never empty
        assert (sets==low).all()
    if k>n: assert sets.all()

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
