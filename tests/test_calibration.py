"""The measures against other people's: scikit-learn, torchmetrics, netcal and relplot, on random predictions and on the edges. And what must hold for any predictions.

Where definitions differ: scikit-learn and we give a bin its upper edge, torchmetrics and netcal its lower one, and torchmetrics opens a bin of its own for a confidence of exactly 1. So these two are compared
where no confidence is on an edge, and the edges with a slow version of the definition, below, and with scikit-learn."""
import importlib, pickle, warnings
from functools import partial
import numpy as np, pandas as pd, pytest, torch
import sklearn.metrics as skm
from scipy.fft import dct, idct
from fastai.basics import F, nn
from fastai.callback.tracker import SaveModelCallback
from hypothesis import given, settings, strategies as st
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from conftest import toy_learner
from ols_fastai.calibration.metrics import *
from ols_fastai.calibration.resampling import *
from ols_fastai.calibration.chance import *
from ols_fastai.calibration.curves import *
from ols_fastai.calibration.classes import brier_decomposition, classwise_ece

BINNED = [ece, adaptive_ece, mce, rms_ce, debiased_ce, classwise_ece]
PLAIN  = [nll, brier, top_5_error, mean_confidence, confidence_gap, smooth_ece, over_confidence, under_confidence, aurc, e_aurc, confidence_auroc]
MEASURES = BINNED+PLAIN+[top_k_acc, top_k_error]

def draw(N, K, scale=2., seed=0, honest=True):
    "Random predictions (fp64); `honest` ones have targets drawn from them"
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(N, K, generator=g, dtype=torch.float64).mul(scale).softmax(1)
    return p,torch.multinomial(p, 1, generator=g)[:,0] if honest else torch.randint(0, K, (N,), generator=g)

@st.composite
def random_preds(draw_, max_K=12):
    N,K = draw_(st.integers(1, 120)),draw_(st.integers(2, max_K))
    return draw(N, K, draw_(st.sampled_from([.1,1.,3.,20.])), draw_(st.integers(0, 2**31)), draw_(st.booleans()))

@st.composite
def edgy_preds(draw_):
    "Ties, confidences on the edges of bins, exactly 0 and exactly 1, a single class, a single sample"
    N,K = draw_(st.integers(1, 30)),draw_(st.integers(2, 6))
    parts = draw_(st.lists(st.lists(st.integers(0, 5), min_size=K, max_size=K).filter(any), min_size=N, max_size=N))
    p = torch.tensor(parts, dtype=torch.float64)
    return p/p.sum(1, keepdim=True), torch.tensor(draw_(st.lists(st.integers(0, K-1), min_size=N, max_size=N)))

def any_preds(): return st.one_of(random_preds(), edgy_preds())
cases = settings(max_examples=200, deadline=None, database=None, derandomize=True)

def same(a, b, eps=1e-9): assert (np.isnan(a) and np.isnan(b)) or abs(a-b)<=eps, (a, b)

# The definitions, sample by sample

def slow_bins(values, hits, edges):
    "count, mean value and share of hits of the bins that hold anything; a bin holds its upper edge, the first one 0 too"
    out = []
    for i,(lo,hi) in enumerate(zip(edges, edges[1:])):
        here = [(v,h) for v,h in zip(values, hits) if (v>lo or i==0) and (v<=hi or i==len(edges)-2)]
        if here: out.append((len(here), sum(v for v,_ in here)/len(here), sum(h for _,h in here)/len(here)))
    return out

def first_guess(p, t):
    guess = [row.index(max(row)) for row in p.tolist()]
    return [row[g] for row,g in zip(p.tolist(), guess)],[float(g==y) for g,y in zip(guess, t.tolist())]

def slow(p, t, n_bins):
    N,K = p.shape
    conf,hit = first_guess(p, t)
    even = np.linspace(0, 1, n_bins+1)
    bins,equal = slow_bins(conf, hit, even),slow_bins(conf, hit, [0,*np.percentile(conf, 100*even[1:-1]),1])
    classes = [slow_bins(p[:,k].tolist(), [float(y==k) for y in t.tolist()], even) for k in range(K)]
    order = sorted(zip(conf, hit), reverse=True)
    risk = {c: 1-np.mean([h for d,h in order if d>=c]) for c in set(conf)}
    wrong = int(N-sum(hit))
    best = np.mean(np.cumsum([0]*(N-wrong)+[1]*wrong)/np.arange(1, N+1))
    pairs = [(a>b)+.5*(a==b) for a,h in order if h for b,g in order if not g]
    return {ece: sum(n*abs(c-a) for n,c,a in bins)/N, mce: max((abs(c-a) for n,c,a in bins if n>=10), default=np.nan), rms_ce: (sum(n*(c-a)**2 for n,c,a in bins)/N)**.5,
            debiased_ce: max(0, sum(n*((c-a)**2-a*(1-a)/(n-1)) for n,c,a in bins if n>1)/N)**.5,
            adaptive_ece: sum(n*abs(c-a) for n,c,a in equal)/N, classwise_ece: sum(n*abs(c-a) for b in classes for n,c,a in b)/N/K,
            over_confidence: np.mean([c for c,h in order if not h] or np.nan), under_confidence: np.mean([1-c for c,h in order if h] or np.nan),
            aurc: np.mean([risk[c] for c in conf]), e_aurc: np.mean([risk[c] for c in conf])-best, confidence_auroc: np.mean(pairs or np.nan)}

@cases
@given(any_preds(), st.sampled_from([1,2,5,15]))
def test_measures_are_what_their_definitions_say(data, n_bins):
    p,t = data
    for f,v in slow(p, t, n_bins).items(): same(f(p, t, **({'n_bins': n_bins} if f in BINNED else {})), v)

@cases
@given(any_preds(), st.sampled_from([1,2,5,15]))
def test_the_parts_of_the_brier_score_are_what_they_are_called(data, n_bins):
    (p,t),parts = data,brier_decomposition(*data, n_bins)
    y,idx = F.one_hot(t, p.shape[1]).double(),torch.bucketize(p, torch.linspace(0, 1, n_bins+1, dtype=torch.float64)[1:-1])
    mean_p,mean_y = p.clone(),y.clone()
    for k in range(p.shape[1]):
        for b in idx[:,k].unique(): here = idx[:,k]==b; mean_p[here,k],mean_y[here,k] = p[here,k].mean(),y[here,k].mean()
    same(parts['brier'], brier(p, t)); same(parts['calibration'], (mean_p-mean_y).square().sum(1).mean().item()); same(parts['refinement'], (y-mean_y).square().sum(1).mean().item())
    same(parts['within bins'], ((p-mean_p).square()-2*(p-mean_p)*(y-mean_y)).sum(1).mean().item())
    same(parts['calibration']+parts['refinement']+parts['within bins'], parts['brier'], 1e-12)

# Other people's

@settings(cases, max_examples=100)
@given(any_preds())
def test_scikit_learn(data):
    (p,t),K = data,data[0].shape[1]
    conf,hit = (np.array(o) for o in first_guess(p, t))
    for k in range(1, K):
        if len(set(t.tolist()))==K>2 and len(p.unique())==p.numel(): same(top_k_acc(p, t, k), skm.top_k_accuracy_score(t, p, k=k))
    floor = torch.finfo(torch.float32).tiny
    if p.gather(1, t[:,None]).min()>1e-15: same(nll(p, t), skm.log_loss(t, p, labels=range(K)), 1e-7)
    else: same(nll(p, t), -p.gather(1, t[:,None]).clamp(min=floor).log().mean().item())
    same(brier(p, t), skm.brier_score_loss(F.one_hot(t, K).numpy(), p.numpy(), scale_by_half=False) if K>2 else 2*skm.brier_score_loss(t, p[:,1], pos_label=1))
    if 0<hit.sum()<len(hit): same(confidence_auroc(p, t), skm.roc_auc_score(hit, conf))
    for n_bins,way in ((15,'uniform'),(4,'quantile')):
        acc,mean = calibration_curve(hit, conf.clip(max=1), n_bins=n_bins, strategy=way)
        r = reliability_table(p, t, n_bins, adaptive=way=='quantile'); r = r[r['count']>0]
        if way=='uniform' or len(np.unique(conf))==len(conf): np.testing.assert_allclose(r[['accuracy','confidence']].values, np.stack([acc,mean], 1), atol=1e-9)

@cases
@given(random_preds(), st.sampled_from([1,10,15,37]))
def test_torchmetrics(data, n_bins):
    (p,t),K = data,data[0].shape[1]
    p = p.float().double()  # torchmetrics bins in fp32
    conf = p.max(1).values
    if ((conf*n_bins-(conf*n_bins).round()).abs()<1e-4).any(): return  # on an edge: defined otherwise, see above
    for f,norm in ((ece,'l1'),(rms_ce,'l2'),(partial(mce, min_count=1),'max')): same(f(p, t, n_bins), multiclass_calibration_error(p, t, K, n_bins, norm).item(), 2e-6)
    for k in range(1, K): same(top_k_acc(p, t, k), multiclass_accuracy(p, t, K, average='micro', top_k=k).item(), 1e-6)

@pytest.mark.filterwarnings('ignore')
@settings(cases, max_examples=60)
@given(random_preds(), st.sampled_from([1,10,15]))
@pytest.mark.references
def test_netcal(data, n_bins):
    metrics = importlib.import_module('netcal.metrics')
    p,t = data
    conf,hit = (np.array(o) for o in first_guess(p, t))
    if (abs(conf*n_bins-(conf*n_bins).round())<1e-9).any(): return
    same(ece(p, t, n_bins), metrics.ECE(n_bins).measure(conf, hit)); same(mce(p, t, n_bins, min_count=1), metrics.MCE(n_bins).measure(conf, hit))
    if not np.isin(np.quantile(conf, np.linspace(0, 1, n_bins+1)[1:-1]), conf).any(): same(adaptive_ece(p, t, n_bins), metrics.ECE(n_bins, equal_intervals=False).measure(conf, hit))

@settings(cases, max_examples=60)
@given(any_preds())
def test_relplot(data):
    relplot = pytest.importorskip('relplot')
    conf,hit = (np.array(o) for o in first_guess(*data))
    if max(conf)>.998: return  # relplot's reflection counts what lies on its last grid point, a confidence of 1, by half
    if (v:=smooth_ece(*data))<.25: same(v, relplot.smECE(conf, hit), 3e-3)  # and it cuts its Gaussian off at 0.5, so that a wide one lacks mass

def reflected(conf, gap, width, cells=4000):
    "The mean smoothed error by quadrature: images of each sample beyond 0 and 1, and a sum over a grid"
    x = (np.arange(cells)+.5)/cells
    images = np.concatenate([2*m+sign*conf for m in range(-6, 7) for sign in (1,-1)])
    kernel = np.exp(-.5*((x[:,None]-images)/width)**2)/width/np.sqrt(2*np.pi)
    return abs(kernel@np.tile(gap, len(images)//len(gap))).mean()/len(gap)

@pytest.mark.parametrize('seed', range(8))
def test_smooth_ece_is_where_error_and_width_are_equal(seed):
    p,t = draw(60, 4, scale=1+seed, seed=seed, honest=seed%2==0)
    p[:seed*4] = torch.eye(4, dtype=torch.float64)[t[:seed*4]]  # and some of exactly 1
    conf,hit = (np.array(o) for o in first_guess(p, t))
    v = smooth_ece(p, t)
    assert .005<v<1; same(reflected(conf, conf-hit, v), v, 2e-4)

@pytest.mark.parametrize('shift', (0,.02,.1,.4))
@pytest.mark.parametrize('N', (40,20_000))
def test_smooth_ece_needs_no_fine_waves(shift, N):
    rng,M = np.random.default_rng(N),8192
    conf = rng.uniform(.5, 1, N)
    p,t = torch.tensor(np.stack([conf, 1-conf], 1)),torch.tensor(rng.random(N)>conf-shift).long()
    wave = dct(np.bincount((conf*M).astype(int), conf-(t==0).numpy(), minlength=M)/N)
    v = smooth_ece(p, t)
    same(abs(idct(wave*np.exp(-.5*(np.pi*np.arange(M)*v)**2))).sum(), v, 2e-5)

def test_smooth_ece_of_a_network_that_is_sure_and_right():
    same(smooth_ece(torch.tensor([[.9995,.0005]]).double().repeat(50, 1), torch.zeros(50).long()), .0005, 1e-6)

def test_torchmetrics_puts_a_confidence_of_1_into_a_bin_of_its_own():
    p,t = torch.tensor([[1.,0.],[.95,.05]], dtype=torch.float64),torch.tensor([0,1])
    same(ece(p, t, 10), abs((1+.95)/2-.5)); assert reliability_table(p, t, 10)['count'].tolist()==[0]*9+[2]
    same(multiclass_calibration_error(p, t, 2, 10).item(), .95/2, 1e-6)  # if this fails it has been mended there

# Properties

@cases
@given(any_preds(), st.sampled_from([1,3,15,100]))
def test_properties(data, n_bins):
    (p,t),K = data,data[0].shape[1]
    acc,gap,eps = top_k_acc(p, t),abs(mean_confidence(p)-top_k_acc(p, t)),1e-9
    largest = partial(mce, min_count=1)
    for f in (ece,adaptive_ece,rms_ce,largest): assert gap-eps<=f(p, t, n_bins)<=1+eps
    assert gap-1e-4<=smooth_ece(p, t)<=1
    assert ece(p, t, n_bins)<=rms_ce(p, t, n_bins)+eps and rms_ce(p, t, n_bins)<=largest(p, t, n_bins)+eps and debiased_ce(p, t, n_bins)<=rms_ce(p, t, n_bins)+eps
    accs = [top_k_acc(p, t, k) for k in range(1, K+1)]
    assert accs==sorted(accs) and accs[-1]==1
    same(top_5_error(p, t), top_k_error(p, t, min(5, K)))
    assert 1-top_5_error(p, t)>=acc
    assert e_aurc(p, t)>=-eps and 0<=aurc(p, t)<=1 and 0<=brier(p, t)<=2 and 0<=nll(p, t)<100
    assert aurc(p, t)==pytest.approx((rc:=risk_coverage(p, t)).risk@np.diff(rc.coverage, prepend=0)) and rc.threshold.is_monotonic_decreasing and rc.threshold.is_unique
    same(rc.risk.iloc[-1], 1-acc)
    same(np.nan_to_num((1-acc)*over_confidence(p, t))-np.nan_to_num(acc*under_confidence(p, t)), mean_confidence(p)-acc)
    assert reliability_table(p, t, n_bins)['count'].sum()==reliability_table(p, t, n_bins, adaptive=True)['count'].sum()==len(t)

@settings(cases, max_examples=60)
@given(any_preds(), st.integers(0, 99))
def test_order_and_type_do_not_matter(data, seed):
    p,t = data
    i = torch.randperm(len(t), generator=torch.Generator().manual_seed(seed))
    q = p.half()
    for f in MEASURES:
        same(f(p[i], t[i]), f(p, t), 1e-7 if f is smooth_ece else 1e-10)
        same(f(sample_stats(p, t)), f(p.numpy(), t.int().numpy()), 0)
        same(f(q, t), f(q.double(), t), 0)
    assert brier_decomposition(p[i], t[i])==pytest.approx(brier_decomposition(p, t), abs=1e-10) and summary_metrics(sample_stats(p, t))==summary_metrics(p, t)

@pytest.mark.parametrize('f', MEASURES)
def test_taking_rows_is_taking_rows(f):
    p,t = draw(70, 6)
    i = np.random.default_rng(0).integers(70, size=90)
    j = np.arange(0, 90, 2)
    same(f(sample_stats(p, t).take(i)), f(p[i], t[i])); same(f(sample_stats(p, t).take(i).take(j)), f(p[i][j], t[i][j]))

def test_taking_rows_of_parts():
    p,t = draw(70, 6)
    i = np.random.default_rng(0).integers(70, size=90)
    assert brier_decomposition(sample_stats(p, t).take(i))==pytest.approx(brier_decomposition(p[i], t[i]), abs=1e-12)

def test_chunks_are_joined():
    "More rows than one chunk holds, and their number no multiple of it"
    p,t = draw(2**18//500*2+77, 500)
    s = sample_stats(p.float(), t)
    q = p.float().double()
    rank = (q.argsort(dim=1, descending=True, stable=True)==t[:,None]).int().argmax(1)
    assert torch.equal(torch.from_numpy(s.rank), rank.long()) and torch.equal(torch.from_numpy(s.confidence), q.max(1).values)
    same(classwise_ece(p.float(), t), sum(ece_of(q[:,k], t==k) for k in range(500))/500)

def ece_of(v, y):
    idx = np.searchsorted(np.linspace(0, 1, 16)[1:-1], v.numpy())
    return abs(np.bincount(idx, v.numpy()-y.numpy())).sum()/len(v)

# The edges, by hand

@pytest.mark.parametrize('K', (2,5,6,165))
def test_certain_and_right_or_wrong(K):
    t = torch.arange(40)%K
    for p,e in ((torch.eye(K)[t],0.),(torch.eye(K)[(t+1)%K],1.)):
        for f in (ece,adaptive_ece,mce,rms_ce,debiased_ce,smooth_ece,aurc,top_k_error): same(f(p, t), e, 1e-6)
        same(brier(p, t), 2*e); same(e_aurc(p, t), 0); assert np.isnan(confidence_auroc(p, t))
        assert np.isnan((over_confidence,under_confidence)[int(e)](p, t))
        if not e: same(brier_decomposition(p, t)['refinement'], 0)

@pytest.mark.parametrize('K', (2,3,10))
def test_all_equal(K):
    p,t = torch.full((10*K,K), 1/K, dtype=torch.float64),torch.arange(10*K)%K
    for f in (ece,adaptive_ece,mce,rms_ce,debiased_ce,smooth_ece,classwise_ece): same(f(p, t), 0)
    same(top_k_acc(p, t), 1/K); same(confidence_auroc(p, t), .5) ; same(aurc(p, t), 1-1/K)

def test_one_sample_and_one_class():
    p,t = torch.tensor([[.7,.2,.1]], dtype=torch.float64),torch.tensor([1])
    for f in (ece,adaptive_ece,partial(mce, min_count=1),rms_ce,over_confidence): same(f(p, t), .7)
    assert np.isnan(mce(p, t))
    same(debiased_ce(p, t), 0); same(smooth_ece(p, t), .7, 1e-4)
    p,_ = draw(50, 3); t = torch.zeros(50, dtype=torch.long)
    for f in MEASURES: assert np.isfinite(f(p, t))

# Input that can't be judged

def broken(row, kind):
    p,t = draw(5000, 165); p = p.float()
    if kind=='nan': p[row,3] = float('nan')
    if kind=='inf': p[row,3] = float('inf')
    if kind=='sum': p[row] *= .9
    if kind=='negative': p[row,0] -= .5; p[row,1] += .5
    if kind=='above': t[row] = 165
    if kind=='below': t[row] = -1
    return p,t

@pytest.mark.parametrize('row', (0,1,1588,4999))
@pytest.mark.parametrize('kind,says', (('nan','not finite'),('inf','not finite'),('sum','sum to 0.9'),('negative','logits'),('above','true class 165'),('below','true class -1')))
def test_the_first_bad_row_is_named(row, kind, says):
    with pytest.raises(ValueError, match=f'^row {row}: .*{says}.*1 such'): ece(*broken(row, kind))

@pytest.mark.parametrize('f', MEASURES+[brier_decomposition, reliability_table, risk_coverage, consistency_band, summary_metrics, sample_stats])
def test_every_measure_checks(f):
    p,t = draw(20, 4)
    for a,b,says in ((p.log(),t,'row 0: .*logits'),(p,t[:-1],'one true class a row'),(p[:0],t[:0],'empty'),(p[:,:1],t,'K of at least 2'),(p,t.float(),'integers'),(p,t+3,'is not in 0..3')):
        if f is mean_confidence and b is not t: continue
        with pytest.raises(ValueError, match=says): f(a, b)

@pytest.mark.parametrize('f', BINNED+[brier_decomposition, reliability_table, consistency_band])
def test_no_bins(f):
    with pytest.raises(ValueError, match='n_bins must be at least 1, got 0'): f(*draw(20, 4), n_bins=0)

def test_k_out_of_range():
    for k in (0,5,-1):
        with pytest.raises(ValueError, match='k must be in 1..4'): top_k_acc(*draw(20, 4), k)

# Noise

def test_bootstrap_of_a_mean_is_the_normal_interval():
    p,t = draw(4000, 5)
    acc = top_k_acc(p, t)
    b = bootstrap([top_k_acc,nll], p, t, n=2000, level=.9)
    half = 1.6449*(acc*(1-acc)/4000)**.5
    assert list(b.columns)==['value','low','high'] and list(b.index)==['top_1_accuracy','nll']
    np.testing.assert_allclose(b.loc['top_1_accuracy'], [acc,acc-half,acc+half], atol=.06*half)

def test_bootstrap_covers():
    "Of 100 intervals of 90 %, about 90 hold the truth: 80 or fewer, or more than 98, have a chance below 1 in 200"
    truth = top_k_acc(*draw(400_000, 4, seed=10**6))
    hits = [(b:=bootstrap(top_k_acc, *draw(250, 4, seed=i), n=100, seed=i, level=.9).iloc[0]).low<=truth<=b.high for i in range(100)]
    assert 80<sum(hits)<=98

def interval(vals, value): return np.quantile(vals, [.025,.975], axis=0) - np.mean(vals, axis=0) + value

def test_the_value_is_in_its_interval():
    "A draw of a calibrated network has a larger ECE than the data; its limits are not below 0"
    for seed in range(10):
        p,t = draw(300, 5, seed=seed)
        b = bootstrap([ece,smooth_ece,nll,mce,debiased_ce], p, t, n=100)
        assert (b.low<=b.value).all() and (b.value<=b.high).all() and (b.low>=0).all()

def test_few_patients_widen_the_interval():
    "Percentiles alone hold it in 91 % of these"
    def loss(s): return float((1-s.p_true).mean())
    truth,held = 1-1/1.8,[]
    for seed in range(300):
        rng = np.random.default_rng(seed)
        p = (rng.random(9)**.8).repeat(3)
        b = bootstrap({'loss': loss}, np.stack([p, 1-p], 1), np.zeros(27, int), groups=np.arange(27)//3, n=200).iloc[0]
        held.append(b.low<=truth<=b.high)
    assert .93<np.mean(held)<.98

def test_bootstrap_is_resampling_rows():
    p,t = draw(40, 4)
    b = bootstrap([brier,classwise_ece,ece(n_bins=4)], p, t, n=50, seed=3)
    rng,vals = np.random.default_rng(3),[]
    for _ in range(50): i = rng.integers(40, size=40); vals.append([brier(p[i], t[i]),classwise_ece(p[i], t[i]),ece(p[i], t[i], 4)])
    np.testing.assert_allclose(b[['low','high']].values.T, interval(vals, b.value.values), atol=1e-12)
    assert b.index[2]=='ece_4' and b.value['brier']==brier(p, t)

def clustered(n_groups=60, size=20, K=4, seed=0):
    "Every image of a patient alike: 60 patients, not 1,200 images"
    p,t = draw(n_groups, K, seed=seed)
    return p.repeat_interleave(size, 0),t.repeat_interleave(size),np.repeat([f'patient {i}' for i in range(n_groups)], size)

def test_groups_widen_the_interval_of_clustered_data():
    p,t,g = clustered()
    a,b = (bootstrap(nll, p, t, groups=o, n=400).iloc[0] for o in (None,g))
    assert 3<(b.high-b.low)/(a.high-a.low)<6 and a.value==b.value  # in truth the root of 20
    i = np.random.default_rng(0).permutation(len(t))
    c = bootstrap(nll, p[i], t[i], groups=g[i], n=400).iloc[0]
    assert (c.high-c.low)/(b.high-b.low)==pytest.approx(1, abs=.2)

def test_groups_of_one_are_samples():
    p,t = draw(50, 4)
    pd.testing.assert_frame_equal(bootstrap(summary_metrics, p, t, n=50), bootstrap(summary_metrics, p, t, groups=np.arange(50), n=50))

def test_each_measure_of_the_same_draws_is_worked_out_once():
    p,t = draw(200, 4)
    who,asked = np.arange(200)//4,[]
    def counted(s): asked.append(1); return s.confidence.mean()
    ms = {'ECE': ece(), 'ECE %': in_percent(ece), 'ECE of 5': ece(n_bins=5), 'NLL': nll(), 'debiased': debiased_ce(), 'mine': counted}
    r = ResampledStats(p, t, who, n=40, seed=3)
    r.draws({'mine': counted, 'NLL': nll()})
    b = bootstrap(ms, r)
    assert len(asked)==41  # the value once more
    asked.clear()
    pd.testing.assert_frame_equal(b, bootstrap(ms, p, t, who, n=40, seed=3)); pd.testing.assert_frame_equal(b, bootstrap(ms, r))
    assert len(asked)==42 and b.low['ECE %']==pytest.approx(100*b.low['ECE']) and b.low['ECE']!=b.low['ECE of 5']
    other = ResampledStats((p.log()*2).softmax(1), t, who, n=40, seed=3)
    pd.testing.assert_frame_equal(paired_bootstrap(ms, r, other), paired_bootstrap(ms, p, other.stats.preds, t, who, n=40, seed=3))
    for wrong in (dict(groups=who, n=40), dict(groups=who, n=30, seed=3), dict(n=40, seed=3)):
        with pytest.raises(ValueError, match='the same groups, n and seed'): paired_bootstrap(nll, r, ResampledStats(p, t, **wrong))

def test_paired_differences():
    p,t = draw(500, 4)
    q = (p.log()*1.3).softmax(1)
    d = paired_bootstrap([nll,top_k_acc], q, p, t, n=300)
    assert d.value['nll']==pytest.approx(nll(q, t)-nll(p, t)) and (d.loc['top_1_accuracy']==0).all()  # the same guesses
    a,b = (bootstrap(nll, o, t, n=300).iloc[0] for o in (p,q))
    assert d.high['nll']-d.low['nll'] < .5*min(a.high-a.low, b.high-b.low)
    rng,vals = np.random.default_rng(0),[]
    for _ in range(300): i = rng.integers(500, size=500); vals.append(nll(q[i], t[i])-nll(p[i], t[i]))
    np.testing.assert_allclose(d.loc['nll',['low','high']].astype(float), interval(vals, d.value['nll']), atol=1e-12)

def test_bootstrap_refuses():
    p,t = draw(50, 4)
    for kw,says in ((dict(groups=np.zeros(50)),'at least 2'),(dict(groups=np.zeros(49)),'each of the 50 samples, got 49')):
        with pytest.raises(ValueError, match=says): bootstrap(nll, p, t, **kw)
    with pytest.raises(ValueError, match='at least 2'): bootstrap(nll, p[:1], t[:1])
    with pytest.raises(ValueError, match='names of their own'): bootstrap([ece,ece], p, t)
    with pytest.raises(ValueError, match='the same samples'): paired_bootstrap(nll, sample_stats(p, t), sample_stats(p, (t+1)%4))

def test_a_missing_patient_is_no_patient():
    "None, NaN and blanks are not one patient of many images: each of these images stands alone, and that is said"
    p,t,g = clustered(40, 5)
    g = g.astype(object)
    g[::2] = np.resize(np.array(['',None,float('nan'),' ',pd.NA], dtype=object), 100)
    alone = g.copy()
    alone[::2] = [f'alone {i}' for i in range(100)]
    with pytest.warns(UserWarning, match='100 of 200 samples have no group .the first: row 0.'): got = group_codes(g, 200)
    assert len(set(got))==140 and len(set(got[::2]))==100 and set(got)==set(range(140))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        widths = [(b:=bootstrap(nll, p, t, groups=o, n=300).iloc[0]).high-b.low for o in (g,alone)]
    assert widths[0]==pytest.approx(widths[1], rel=.15)

@pytest.mark.parametrize('like', (True,False))
def test_a_share_by_patient(like):
    "95 % intervals of 60 patients of ten images hold the truth in about 95 %, alike or independent"
    rng,hits,narrow = np.random.default_rng(0),[],[]
    for _ in range(300):
        x = np.repeat(rng.random(60)<.9, 10) if like else rng.random(600)<.9
        _,low,high = proportion_interval(x, np.arange(600)//10)
        hits.append(low<=.9<=high)
        narrow.append((lambda o: o[1]<=.9<=o[2])(proportion_interval(x)))
    assert .92<=np.mean(hits)<=.99 and (np.mean(narrow)<.6)==like

def test_groups_of_any_type():
    for groups in (['a','b','a'],[7,8,7],np.array([1.5,2.,1.5]),pd.Series(['x','y','x'], dtype='category'),pd.to_datetime(['2020','2021','2020'])):
        assert group_codes(groups, 3).tolist()==[0,1,0]
    assert group_codes(None, 3).tolist()==[0,1,2]

@pytest.mark.parametrize('wrong', (0,1,59,60))
def test_no_interval_leaves_the_range_of_its_measure(wrong):
    "Of a network that is nearly always right (or wrong), and sure of it"
    def percent(s): return 100*top_k_acc(s)
    def plain(s): return top_k_acc(s)
    for seed in range(12):
        p,_ = draw(60, 4, scale=6, seed=seed)
        t = p.argmax(1)
        t[:wrong] = (t[:wrong]+1)%4
        ms = [mce(min_count=1),mce,ece,smooth_ece,rms_ce,debiased_ce,classwise_ece,mean_confidence,over_confidence,aurc,e_aurc,confidence_auroc,top_k_acc,top_k_error,plain]
        unit = bootstrap(dict(enumerate(ms)), p, t, n=40, seed=seed).fillna(.5)
        whole = pd.concat([bootstrap(percent, p, t, n=40, seed=seed), bootstrap(summary_metrics, p, t, n=40, seed=seed)])
        percents = whole[whole.index.str.contains('%') | (whole.index=='percent')]
        assert unit.low.min()>=0 and unit.high.max()<=1 and percents.low.min()>=0 and percents.high.max()<=100
        assert ((unit.low<=unit.value+1e-12) & (unit.value<=unit.high+1e-12)).all()
        scores = bootstrap([brier,nll], p, t, n=40, seed=seed)
        assert scores.low.min()>=0 and scores.high['brier']<=2

def test_bins_of_a_few_samples_are_no_maximum():
    "9 samples of confidence .55, all wrong, beside 200 that are nearly calibrated"
    p = torch.tensor([[.55,.45]]*9+[[.95,.05]]*200, dtype=torch.float64)
    t = torch.tensor([1]*9+[0]*189+[1]*11)
    same(mce(p, t), .95-189/200); same(mce(p, t, min_count=9), .55); same(mce(p, t, min_count=1), .55)
    assert np.isnan(mce(p[:9], t[:9]))

def test_rank_of_equal_probabilities():
    "As a stable sort has it: of equal ones the first class comes first"
    p = torch.tensor([[.2,.2,.2,.2,.2],[.1,.3,.3,.3,0.],[.4,.1,.1,.4,0.]], dtype=torch.float64)
    for k in range(5):
        t = torch.full((3,), k)
        want = (p.argsort(dim=1, descending=True, stable=True)==k).int().argmax(1)
        assert sample_stats(p, t).rank.tolist()==want.tolist()

def test_a_probability_of_0_counts_as_tiny():
    same(nll(torch.eye(3), torch.tensor([1,2,0])), -np.log(TINY)); same(nll(torch.tensor([[TINY/4,1.]]), torch.tensor([0])), -np.log(TINY))

def test_seeds():
    p,t = draw(50, 4)
    state = np.random.get_state()[1].copy(),torch.get_rng_state()
    a,b,c = (bootstrap(nll, p, t, n=30, seed=i) for i in (1,1,2))
    assert a.equals(b) and not a.equals(c) and consistency_band(p, t, seed=1).equals(consistency_band(p, t, seed=1))
    assert (np.random.get_state()[1]==state[0]).all() and torch.equal(torch.get_rng_state(), state[1])

@pytest.mark.parametrize('adaptive', (False,True))
def test_calibrated_is_within_the_band_and_overconfident_is_not(adaptive):
    inside = []
    for seed in range(40):
        p,t = draw(1500, 6, seed=seed)
        b = consistency_band(p, t, 10, n=400, level=.9, adaptive=adaptive); b = b[b['count']>20]
        inside += ((b.band_low<=b.accuracy)&(b.accuracy<=b.band_high)).tolist()
    assert len(inside)>200 and .86<np.mean(inside)<.96  # 90 %, and a little more since counts are whole
    p,t = draw(1500, 6, seed=0)
    b = consistency_band((p.log()*2).softmax(1), t, 10, adaptive=adaptive); b = b[b['count']>20]
    assert (b.accuracy<b.band_low).mean()>.5

def test_the_band_is_that_of_resampling():
    "Broecker & Smith's procedure, done as they write it"
    p,t = draw(300, 4)
    b,(conf,_) = consistency_band(p, t, 5, n=20000),first_guess(p, t)
    conf,rng,edges = np.array(conf),np.random.default_rng(1),np.linspace(0, 1, 6)
    acc = []
    for _ in range(4000):
        c = rng.choice(conf, 300); y = rng.random(300)<c; idx = np.searchsorted(edges[1:-1], c)
        with np.errstate(invalid='ignore'): acc.append(np.bincount(idx, y, minlength=5)/np.bincount(idx, minlength=5))
    full = (b['count']>10).values
    np.testing.assert_allclose(b[['band_low','band_high']].values.T[:,full], np.nanquantile(acc, [.025,.975], axis=0)[:,full], atol=.03)
    assert b[b['count']==0][['band_low','band_high']].isna().all(axis=None)

def test_the_band_by_patient():
    "60 patients of ten like images: bins of a calibrated network stay in their band, which they leave if images are taken as independent"
    def outside(p, t, groups):
        b = consistency_band(p, t, 10, n=300, groups=groups).query('count>=30')
        return ((b.accuracy<b.band_low-1e-9)|(b.accuracy>b.band_high+1e-9)).tolist()
    rows = [clustered(60, 10, seed=i) for i in range(30)]
    assert .3<np.mean(sum((outside(p, t, None) for p,t,_ in rows), [])) and np.mean(sum((outside(*o) for o in rows), []))<.1
    p,t = draw(400, 4)
    a,b = (consistency_band(p, t, 5, n=4000, groups=o)[['band_low','band_high']] for o in (None,np.arange(400)))
    np.testing.assert_allclose(a, b, atol=.02)  # every image a patient: the same
    band = consistency_band(torch.eye(4)[[0,1,2,3]*5], torch.arange(20)%4, 3, groups=np.arange(20)//2)
    assert band[['band_low','band_high']].iloc[2].tolist()==[1,1]

def test_standard_error_of_a_slice():
    "Of slices with few patients a calibrated network's gap is within 1.96 standard errors in about 95 %"
    outside,naive = [],[]
    for seed in range(60):
        p,t,g = clustered(60, 10, seed=seed, K=14)
        conf,by = p.max(1).values.numpy(),p.argmax(1).numpy()
        d,v = conf-(by==t.numpy()),conf*(1-conf)
        gaps = abs(np.bincount(by, d))
        outside += (gaps>1.96*null_errors_by(d, v, by, g)+1e-9)[np.unique(by)].tolist()
        naive += (gaps>1.96*null_errors_by(d, v, by)+1e-9)[np.unique(by)].tolist()
    assert np.mean(outside)<.08 and np.mean(naive)>.3
    d,v = np.array([1.,-1,2,0]),np.ones(4)
    same(null_error(d, v), 2); same(null_error(d, v, [0,0,1,1]), 2); same(null_error(d, v, [0,1,0,1]), 10**.5)
    np.testing.assert_allclose(null_errors_by(d, v, np.array([0,0,1,1])), 2**.5)

# As fastai metrics

def last(learn): return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))

@pytest.mark.parametrize('loss', (None,nn.CrossEntropyLoss(),F.cross_entropy), ids=('fastai','torch','function'))
def test_learner_shows_them_over_the_whole_validation_set(loss):
    names = {'ece': ece, 'nll': nll, 'brier': brier, 'top_5_error': top_5_error, 'classwise_ece': classwise_ece, 'smooth_ece': smooth_ece}
    learn = toy_learner(metrics=[ece,nll,brier,top_5_error,classwise_ece,smooth_ece,ece(n_bins=3),top_k_error(k=2)], **({} if loss is None else {'loss_func': loss}))
    learn.fit(2)
    seen = last(learn)
    p,t = learn.get_preds(act=lambda o: F.softmax(o, dim=-1))
    for name,f in names.items(): same(seen[name], f(p, t), 1e-6)
    same(seen['ece_3'], ece(p, t, 3), 1e-6); same(seen['top_2_error'], top_k_error(p, t, 2))
    mean = np.mean([ece(p[i:i+40], t[i:i+40]) for i in range(0, 60, 40)])
    assert abs(mean-seen['ece'])>1e-3  # what a mean of batches would have shown
    learn.validate(); same(learn.metrics[0].value, ece(p, t), 1e-6)  # starts anew

def test_two_learners_do_not_share():
    a,b = (toy_learner(metrics=[ece], seed=i) for i in range(2))
    assert a.metrics[0] is not b.metrics[0]
    a.fit(1); assert b.metrics[0].value is None

def test_logits_are_an_error_not_a_figure():
    class Own(nn.Module):
        def forward(self, z, t): return F.cross_entropy(z, t)
    with pytest.raises(ValueError, match='logits'): toy_learner(metrics=[ece], loss_func=Own()).fit(1)

def test_measures_pickle_and_tell_what_they_take():
    assert pickle.loads(pickle.dumps(ece)) is ece and pickle.loads(pickle.dumps(ece(n_bins=7))).name=='ece_7'
    with pytest.raises(TypeError, match='bins'): ece(bins=7)
    import inspect
    assert list(inspect.signature(ece).parameters)==['preds','targs','n_bins'] and 'Guo' in ece.__doc__
    same(ece(n_bins=7)(*draw(50, 4)), ece(*draw(50, 4), n_bins=7))
    assert [f().name for f in BINNED]==[f.__name__ for f in BINNED]
    assert mce(min_count=1).name=='mce_15_1' and ece(n_bins=15).name=='ece'

@pytest.mark.parametrize('monitor,metric', (('ece',ece), ('ece_5',ece(n_bins=5)), ('top_1_accuracy',top_k_acc)))
def test_callbacks_monitor_a_measure(monitor, metric, tmp_path):
    "SaveModelCallback keeps the epoch that is best by this measure"
    lower = monitor!='top_1_accuracy'
    learn = toy_learner(metrics=[nll,metric], lr=.5)
    learn.path = tmp_path
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='SaveModelCallback')
        learn.fit(6, cbs=SaveModelCallback(monitor=monitor, comp=np.less if lower else None))
    seen = [dict(zip(learn.recorder.metric_names[1:], v))[monitor] for v in learn.recorder.values]
    p,t = learn.get_preds()  # of the network that was kept
    same(metric(p, t), min(seen) if lower else max(seen), 1e-6)
    assert len(set(seen))>2

def test_a_callback_that_looks_for_the_highest_error_is_told(tmp_path):
    learn = toy_learner(metrics=[ece])
    learn.path = tmp_path
    with pytest.warns(UserWarning, match='SaveModelCallback looks for the highest ece, and lower is better: pass it comp=np.less'):
        learn.fit(1, cbs=SaveModelCallback(monitor='ece'))

def test_a_measure_of_ones_own():
    @as_measure(lower_is_better=False)
    def p_true(preds, targs=None, power=1): return (sample_stats(preds, targs).p_true**power).mean().item()
    learn = toy_learner(metrics=[p_true,p_true(power=2)])
    learn.fit(1)
    seen = last(learn)
    p,t = learn.get_preds()
    same(seen['p_true'], p.gather(1, t[:,None]).mean().item(), 1e-6); same(seen['p_true_2'], p_true(p, t, 2), 1e-6)

def test_in_percent():
    p,t = draw(200, 5)
    for m,f in ((in_percent(top_k_acc),top_k_acc), (in_percent(top_k_error(k=2)),lambda p, t: top_k_error(p, t, 2))): same(m(p, t), 100*f(p, t), 0)
    a,b = (bootstrap({'a': o}, p, t, n=30).iloc[0] for o in (top_k_acc,in_percent(top_k_acc)))
    np.testing.assert_allclose(100*a, b)
    assert top_k_acc().scale==1  # the measure itself stays

def test_a_pickled_metric_takes_no_validation_set_along():
    "`learn.export` pickles the metrics"
    learn = toy_learner(metrics=[ece(n_bins=7)])
    learn.fit(1)
    metric = pickle.loads(pickle.dumps(learn.metrics[0]))
    assert learn.metrics[0].value is not None and metric.value is None and metric.name=='ece_7'

def test_the_debiased_error_by_group_takes_off_what_groups_add():
    "By its definition; like images of a patient are noise of the patient, not of the image"
    rng = np.random.default_rng(3)
    who = np.sort(rng.integers(0, 40, 300))
    p = torch.from_numpy(rng.dirichlet([1,1,1], 40)[who])   # all images of a patient look alike
    t = torch.from_numpy(np.where(rng.random(300)<.7, p.argmax(1).numpy(), 2))
    conf,right = p.max(1).values.numpy(),(p.argmax(1)==t).numpy()
    total = 0.
    for b in range(5):
        of = (conf>b/5)&(conf<=(b+1)/5)
        groups = set(who[of])
        if len(groups)<2: continue
        n,acc,G = of.sum(),right[of].mean(),len(groups)
        sums = [(right[of&(who==k)]-acc).sum() for k in groups]
        total += n/300*((conf[of].mean()-acc)**2 - sum(o**2 for o in sums)/n**2*G/(G-1))
    by_patient,by_image = (debiased_ce(grouped_stats(p, t, o), n_bins=5) for o in (who,None))
    same(by_patient, max(0, total)**.5, 1e-9)
    assert 0<by_patient<by_image

@pytest.mark.parametrize('by', ['images','patients'])
def test_the_gap_of_a_network_without_mistakes_is_not_certain(by):
    "33 images and no mistake: the accuracy may be 90 %, and with it the gap may be 0"
    p = torch.full((33,3), .035)
    p[:,0] = .93 + .02*torch.linspace(-1, 1, 33)
    p,t = p/p.sum(1, keepdim=True),torch.zeros(33, dtype=torch.long)
    who = None if by=='images' else np.arange(33)//3
    gap,acc = bootstrap([confidence_gap,top_k_acc], p, t, who, n=50).iloc
    assert gap.value==pytest.approx(confidence_gap(p, t)) and gap.low<gap.value<-.05
    assert gap.high==pytest.approx(gap.value + acc.value-acc.low, abs=.01)   # the confidences differ by little
    many = draw(600, 3)
    assert bootstrap(confidence_gap, *many, n=50).notna().all(axis=None)
    wide,plain = (bootstrap(in_percent(confidence_gap), p, t, o, n=50).iloc[0] for o in (who,who))
    assert wide.high==pytest.approx(100*gap.high) and plain.equals(wide)
