"""One class, one finding, one patient: tables, curves and tests against scikit-learn, statsmodels, and (by `make test-references`) model-diagnostics, MAPIE and dcurves.

A class that is neither the first nor the last of three or more is among those compared throughout."""
import importlib, warnings
import numpy as np, pandas as pd, pytest, torch
import sklearn.metrics as skm
from hypothesis import given, settings, strategies as st
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from ols_fastai.calibration.metrics import *
from ols_fastai.calibration.resampling import *
from ols_fastai.calibration.curves import *
from ols_fastai.calibration.classes import *

cases = settings(max_examples=60, deadline=None, database=None, derandomize=True)

def draw(N, K, scale=1.5, sharper=1., seed=0):
    "Predictions (fp64), the logits of which are `sharper` times those that the targets are drawn from"
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(N, K, generator=g, dtype=torch.float64)*scale
    return (sharper*z).softmax(1),torch.multinomial(z.softmax(1), 1, generator=g)[:,0]

def draw_findings(N, K, seed=0, noise=1.):
    g = torch.Generator().manual_seed(seed)
    share = torch.linspace(.1, .6, K, dtype=torch.float64)
    z = torch.logit(share) + torch.randn(N, K, generator=g, dtype=torch.float64)*noise
    return z.sigmoid(),(torch.rand(N, K, generator=g, dtype=torch.float64)<z.sigmoid()).long()

def patients(N, size=10): return np.array([f'patient {i//size}' for i in range(N)])

def tenfold(p, t): return p.repeat_interleave(10, 0),t.repeat_interleave(10, 0),patients(10*len(t))

def ends(row, name): return row[[name,f'{name}_low',f'{name}_high']].to_numpy(dtype=float)

# One outcome at a time

def test_one_outcome():
    p,t = draw(50, 4)
    for k in range(4):
        q,y = one_outcome(p, t, k)
        assert np.array_equal(q, p[:,k]) and np.array_equal(y, (t==k).double())
    q,y = one_outcome(p, t)
    assert np.array_equal(q, p.max(1).values) and np.array_equal(y, (p.argmax(1)==t).double())
    rows = np.random.default_rng(0).integers(50, size=80)
    assert np.array_equal(one_outcome(sample_stats(p, t).take(rows), k=2)[0], p[rows,2])
    f,y = draw_findings(50, 3)
    assert np.array_equal(one_outcome(f, y, 1)[0], f[:,1]) and np.array_equal(one_outcome(f[:,1], y[:,1])[1], y[:,1])
    assert np.array_equal(one_outcome(f[:,1:2], y[:,1])[0], f[:,1])

def test_what_can_not_be_judged():
    p,t = draw(50, 4)
    f,y = draw_findings(50, 3)
    bad = y.clone().double()
    bad[7,1] = float('nan')
    for call,says in ((lambda: one_outcome(p, t, 4),'0..3'), (lambda: one_outcome(p, t, -1),'0..3'), (lambda: one_outcome(f, y),'no top-1'), (lambda: class_table(f, bad),'row 7: targs must be 0 or 1'),
                      (lambda: class_table(f*3, y),'not in 0..1; logits'), (lambda: class_table(f/float('nan'), y),'row 0: preds are not finite'), (lambda: class_table(f, y[:,:2]),'do not go together'),
                      (lambda: class_table(p, t, ['a','b']),'2 names for 4'), (lambda: net_benefit(p, t),'which class'), (lambda: net_benefit(p, t, 1, [0,.5]),'between 0 and 1'),
                      (lambda: most_confused(f, y),'multi-label'), (lambda: class_table(p, t, groups=[1,2]),'each of the 50 samples'), (lambda: class_table(f[:0], y[:0]),'empty'),
                      (lambda: corp_decomposition(sample_stats(p, t)._replace(preds=None), k=1),'needs predictions')):
        with pytest.raises(ValueError, match=says): call()

# The class table

@cases
@given(st.integers(0, 10**6), st.integers(30, 200), st.integers(3, 7), st.booleans())
def test_found_as_scikit_learn_says(seed, N, K, ties):
    p,t = draw(N, K, seed=seed)
    if ties: p = (p*8).round()+.01; p = p/p.sum(1, keepdim=True)
    table,guess = class_table(p, t),p.argmax(1)
    for k in range(K):
        y,row = (t==k).numpy(),table.loc[k]
        assert row.n==y.sum() and row.prevalence==pytest.approx(y.mean())
        if not y.any(): assert np.isnan(row.AUROC) and np.isnan(row.sensitivity); continue
        assert row.AUROC==pytest.approx(skm.roc_auc_score(y, p[:,k]), abs=1e-12) and row.AUPRC==pytest.approx(skm.average_precision_score(y, p[:,k]), abs=1e-12)
        assert row.sensitivity==pytest.approx(skm.recall_score(y, guess==k)) and row.specificity==pytest.approx(skm.recall_score(~y, guess!=k))
        if (guess==k).any(): assert row.PPV==pytest.approx(skm.precision_score(y, guess==k))
        else: assert np.isnan(row.PPV)
        assert row['O/E']==pytest.approx(y.sum()/p[:,k].sum().item())

def test_thresholds():
    p,t = draw(300, 4)
    for table,cut in ((class_table(p, t, threshold=.3),[.3]*4), (class_table(p, t, threshold=[.1,.2,.3,.4]),[.1,.2,.3,.4])):
        for k in range(4): assert table.sensitivity[k]==pytest.approx(skm.recall_score(t==k, p[:,k]>=cut[k]))

def test_shares_have_wilsons_interval():
    from statsmodels.stats.proportion import proportion_confint
    for hits,n in ((0,60),(1,60),(30,60),(60,60),(3,4)):
        share,low,high = proportion_interval(np.arange(n)<hits)
        np.testing.assert_allclose((low,high), proportion_confint(hits, n, method='wilson'), atol=1e-12)
    p,t = draw(400, 5)
    row,y = class_table(p, t).loc[2],(t==2).numpy()
    np.testing.assert_allclose(ends(row, 'sensitivity')[1:], proportion_confint((p.argmax(1)[y]==2).sum().item(), y.sum(), method='wilson'), atol=1e-12)

def test_no_mistake_is_not_certainty():
    p,t = torch.tensor([[.98,.01,.01]], dtype=torch.float64).repeat(60, 1),torch.zeros(60, dtype=torch.long)
    assert bootstrap(in_percent(top_k_acc), p, t, n=20).iloc[0].tolist()==pytest.approx([100,93.98,100], abs=.01)
    share,low,high = proportion_interval(np.ones(600), patients(600))
    assert (share,high)==(1,1) and low==pytest.approx(proportion_interval(np.ones(60))[1], abs=.005)  # 60 patients
    assert proportion_interval(np.ones(10), np.zeros(10))==(1,0,1) and np.isnan(proportion_interval([])).all()

def test_like_images_of_a_patient_are_one_image():
    "Ten copies of each image, by patient: every interval as wide as that of single images"
    p,t = draw(400, 5, sharper=1.3)
    q,u,g = tenfold(p, t)
    one,ten = class_table(p, t),class_table(q, u, groups=g)
    for name in ('prevalence','sensitivity','specificity','PPV','AUROC','AUPRC','O/E','intercept','slope'):
        a,b = (np.stack([ends(r, name) for _,r in o.iterrows()]) for o in (one,ten))
        np.testing.assert_allclose(b[:,0], a[:,0], atol=1e-9)
        assert np.median((b[:,2]-b[:,1])/(a[:,2]-a[:,1]))==pytest.approx(1, abs=.06), name
    naive = class_table(q, u)
    assert ((naive.AUROC_high-naive.AUROC_low)<.4*(ten.AUROC_high-ten.AUROC_low)).all()

def test_groups_of_one_change_nothing():
    p,t = draw(200, 4)
    pd.testing.assert_frame_equal(class_table(p, t), class_table(p, t, groups=np.arange(200)))

@pytest.mark.parametrize('k', (0,1,2,4))
def test_calibration_as_statsmodels_says(k):
    import statsmodels.api as sm
    p,t = draw(800, 5, sharper=1.4)
    q,y = one_outcome(p, t, k)
    l,g = np.log(q/(1-q)),pd.factorize(patients(800, 7))[0]
    X = sm.add_constant(l)
    for groups in (None,g):
        row = class_table(p, t, groups=groups).loc[k]
        by_group = dict(cov_type='cluster', cov_kwds=dict(groups=g, use_correction=False))
        robust = dict(cov_type='HC0') if groups is None else by_group  # a slope that is not 1 contradicts the model
        large = sm.GLM(y, np.ones(800), family=sm.families.Binomial(), offset=l).fit(tol=1e-12, **robust)
        slope = sm.Logit(y, X).fit(disp=0, tol=1e-12, **({} if groups is None else by_group))
        np.testing.assert_allclose(ends(row, 'intercept'), [large.params[0],*large.conf_int()[0]], atol=1e-7)
        np.testing.assert_allclose(ends(row, 'slope'), [slope.params[1],*slope.conf_int()[1]], atol=1e-7)

def test_slope_and_intercept_undo_what_was_done():
    p,t = draw(4000, 3, sharper=2.)
    q,y = one_outcome(p, t, 1)
    moved = expit((np.log(q/(1-q)) - .7)/.5)
    a,b = (class_table(o, y).iloc[0] for o in (q,moved))
    assert b.slope==pytest.approx(a.slope*.5, abs=1e-6) and abs(class_table(expit(np.log(q/(1-q))-a.intercept*-1), y).intercept[0])<1e-6

@pytest.mark.parametrize('f,theirs', (('AUROC',skm.roc_auc_score), ('AUPRC',skm.average_precision_score)))
def test_standard_errors_are_those_of_resampling(f, theirs):
    p,t = draw(600, 4)
    q,y = one_outcome(p, t, 2)
    rng,draws = np.random.default_rng(0),[]
    for _ in range(600):
        i = rng.integers(600, size=600)
        draws.append(theirs(y[i], q[i]))
    v,low,high = ends(class_table(p, t).loc[2], f)
    half = 1.96*np.std(draws)/(v*(1-v))
    np.testing.assert_allclose((low,high), expit(np.log(v/(1-v)) + np.array([-half,half])), atol=.01)

def test_auroc_has_delongs_variance():
    p,t = draw(150, 3)
    q,y = one_outcome(p, t, 1)
    pairs = (q[y==1][:,None]>q[y==0]) + .5*(q[y==1][:,None]==q[y==0])
    v,variance = pairs.mean(),pairs.mean(1).var(ddof=1)/y.sum() + pairs.mean(0).var(ddof=1)/(1-y).sum()
    auc,low,high = ends(class_table(p, t).loc[1], 'AUROC')
    half = 1.96*variance**.5/(v*(1-v))
    assert auc==pytest.approx(v) and (low,high)==pytest.approx(tuple(expit(np.log(v/(1-v)) + np.array([-half,half]))), abs=2e-3)

def test_o_over_e():
    p,t = draw(500, 4)
    q,y = one_outcome(p, t, 2)
    v,low,high = ends(class_table(p, t).loc[2], 'O/E')
    rng,draws = np.random.default_rng(0),[]
    for _ in range(2000): i = rng.integers(500, size=500); draws.append(y[i].sum()/q[i].sum())
    np.testing.assert_allclose((low,high), np.quantile(draws, [.025,.975]), atol=.03)

def test_too_few_images_and_the_reason():
    p,t = draw(300, 4)
    t = torch.where((t==2) & ((t==2).cumsum(0)>9), 1, t)  # nine of class 2
    table = class_table(p, t, list('abcd'))
    row = table.loc['c']
    assert row.note=='the class in 9 images only, of 10 needed' and row.n==9 and np.isfinite(ends(row, 'sensitivity')).all() and np.isfinite(row.AUROC)
    assert row[['AUROC_low','AUPRC_high','O/E_low','slope','slope_low','intercept']].isna().all()
    assert (table.drop('c').note=='').all() and table.drop('c').drop(columns='note').notna().all(axis=None)
    q,u,g = tenfold(p, t)
    assert class_table(q, u, groups=g).note[2]=='the class in 9 patients only, of 10 needed'  # 90 images
    y = torch.ones(40); y[:3] = 0
    assert class_table(torch.rand(40, generator=torch.Generator().manual_seed(0)), y).note[0]=='another class in 3 images only, of 10 needed'
    assert class_table(p, torch.where(t==2, 1, t)).note[2]=='the class in 0 images only, of 10 needed'

def test_separation_has_no_slope():
    y = np.repeat([0,1], 30)
    q = np.where(y==1, np.linspace(.7, .9, 60), np.linspace(.1, .3, 60))
    row = class_table(q, y).iloc[0]
    assert row.note=='separated: no intercept, no slope' and row[['slope','slope_low','slope_high','intercept','intercept_low']].isna().all()
    assert row.AUROC==row.AUROC_high==1 and .8<row.AUROC_low<.95
    same = class_table(np.full(60, .3), y).iloc[0]
    assert np.isnan(same.slope) and same.AUROC==.5 and same.note and np.isfinite(same.intercept)

def test_saturated_softmax():
    "fp32 rounds to 0 and to 1: every figure is finite and in its range"
    p,t = draw(2000, 4, sharper=40.)
    q = p.float()
    assert (q==1).any() and (q==0).any()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        table = class_table(q, t)
    assert table.drop(columns='note').notna().all(axis=None) and (table.note=='').all() and (table.slope>0).all() and (table.slope_high<.2).all()
    unit = table[[o for o in table if o.startswith(('prevalence','sensitivity','specificity','PPV','AU'))]]
    assert ((unit>=0) & (unit<=1)).all(axis=None)

def test_findings_one_by_one():
    f,y = draw_findings(600, 3)
    table = class_table(f, y, ['effusion','nodule','opacity'])
    for k,name in enumerate(table.index):
        assert table.AUROC[name]==pytest.approx(skm.roc_auc_score(y[:,k], f[:,k])) and table.PPV[name]==pytest.approx(skm.precision_score(y[:,k], f[:,k]>=.5))
        alone = class_table(f[:,k], y[:,k], [name])
        pd.testing.assert_frame_equal(alone, table.loc[[name]])
    pd.testing.assert_frame_equal(class_table(f[:,1:2], y[:,1]), class_table(f[:,1], y[:,1]))
    pd.testing.assert_frame_equal(class_table(f.numpy(), y.bool().numpy()), class_table(f, y))

def test_two_classes_are_one_finding():
    p,t = draw(400, 2)
    a,b = class_table(p, t).loc[1],class_table(p[:,1], t).loc[0]
    for name in ('AUROC','O/E','slope','intercept'): np.testing.assert_allclose(ends(a, name), ends(b, name), atol=1e-9)

# Over all classes

@cases
@given(st.integers(0, 10**6), st.integers(3, 8), st.integers(20, 300))
def test_macro_as_scikit_learn_says(seed, K, N):
    p,t = draw(N, K, seed=seed)
    m,guess = macro_table(p, t).value,p.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert m['balanced accuracy']==pytest.approx(skm.balanced_accuracy_score(t, guess)) and m['macro F1']==pytest.approx(skm.f1_score(t, guess, average='macro'))
    if len(set(t.tolist()))==K: assert m['macro AUROC']==pytest.approx(skm.roc_auc_score(t, p, multi_class='ovr'))
    f,y = draw_findings(N+50, K, seed=seed)
    m,guess = macro_table(f, y).value,f>=.5
    assert m['macro AUROC']==pytest.approx(skm.roc_auc_score(y, f)) and m['macro F1']==pytest.approx(skm.f1_score(y, guess, average='macro', zero_division=0))
    assert m['balanced accuracy']==pytest.approx(np.mean([skm.balanced_accuracy_score(y[:,k], guess[:,k]) for k in range(K)]))

def test_macro_intervals_are_those_of_resampling():
    p,t = draw(800, 5)
    m,draws,rng = macro_table(p, t),[],np.random.default_rng(0)
    for _ in range(300):
        i = rng.integers(800, size=800)
        draws.append(macro_table(p[i], t[i]).value)
    np.testing.assert_allclose(m.high-m.low, 3.92*pd.DataFrame(draws).std(), rtol=.12)
    ten = macro_table(*tenfold(p, t)[:2], groups=tenfold(p, t)[2])
    np.testing.assert_allclose(ten, m, atol=2e-3)

def test_most_confused():
    p,t = draw(500, 5)
    names,matrix = list('abcde'),skm.confusion_matrix(t, p.argmax(1))
    table = most_confused(p, t, names, None)
    for r in table.itertuples():
        i,j = names.index(r.true),names.index(r.predicted)
        assert r.count==matrix[i,j] and r.share==pytest.approx(matrix[i,j]/matrix[i].sum()) and r.low<r.share<r.high and i!=j
    np.fill_diagonal(matrix, 0)
    assert len(table)==(matrix>0).sum() and table['count'].is_monotonic_decreasing and len(most_confused(p, t, n=3))==3
    assert len(most_confused(torch.eye(3)[torch.arange(3)], torch.arange(3)))==0

# Decision curves

@pytest.mark.parametrize('k', (0,2,4))
def test_net_benefit(k):
    p,t = draw(400, 5)
    q,y = one_outcome(p, t, k)
    curve = net_benefit(p, t, k, [.05,.2,.5])
    for r in curve.itertuples(index=False):
        odds,act = r[0]/(1-r[0]),q>=r[0]
        assert r[1]==pytest.approx(((act*y).sum()-(act*(1-y)).sum()*odds)/400) and r[4]==pytest.approx(y.mean()-(1-y.mean())*odds) and r[5]==0 and r[2]<=r[1]<=r[3]
    ten = net_benefit(*tenfold(p, t)[:2], k, [.05,.2,.5], tenfold(p, t)[2])
    np.testing.assert_allclose(ten, curve, atol=2e-3)
    assert len(net_benefit(q, y))==99

@pytest.mark.references
def test_net_benefit_as_dcurves_says():
    dcurves = importlib.import_module('dcurves')
    p,t = draw(600, 4)
    q,y = one_outcome(p, t, 2)
    theirs = dcurves.dca(data=pd.DataFrame(dict(y=y, q=q)), outcome='y', modelnames=['q'], thresholds=np.array([.1,.3,.5]))
    ours = net_benefit(p, t, 2, [.1,.3,.5])
    for model,name in (('q','net benefit'),('all','treat all')):
        np.testing.assert_allclose(ours[name], theirs.net_benefit[theirs.model==model], atol=1e-6)

# CORP

@pytest.mark.parametrize('k', (None,0,2))
def test_the_curve_is_isotonic_regression(k):
    p,t = draw(500, 4, sharper=1.5)
    tied = torch.from_numpy(np.random.default_rng(0).multinomial(16, p/p.sum(1, keepdim=True))/16)
    for q in (p,tied):
        prob,y = one_outcome(q, t, k)
        r = corp(q, t, k, n=0)
        want = IsotonicRegression().fit(prob, y).predict(r.probability)
        np.testing.assert_allclose(r.frequency, want, atol=1e-9)
        assert r['count'].sum()==500 and list(r.columns)==['probability','count','frequency']

@pytest.mark.parametrize('k', (None,0,2))
@pytest.mark.references
def test_parts_of_a_score_as_model_diagnostics_says(k):
    scoring = importlib.import_module('model_diagnostics.scoring')
    p,t = draw(700, 4, sharper=1.5)
    q,y = one_outcome(p, t, k)
    ours = corp_decomposition(p, t, k)
    for name,f in (('Brier',scoring.SquaredError()),('log score',scoring.LogLoss())):
        theirs = scoring.decompose(y, q, scoring_function=f).to_dicts()[0]
        assert [ours[name],*(ours[f'{name} {o}'] for o in ('MCB','DSC','UNC'))]==pytest.approx([theirs[o] for o in ('score','miscalibration','discrimination','uncertainty')], abs=1e-9)

@cases
@given(st.integers(0, 10**6), st.integers(10, 200), st.integers(3, 6))
def test_parts_of_a_score(seed, N, K):
    p,t = draw(N, K, sharper=1.5, seed=seed)
    for k in (None,1):
        q,y = one_outcome(p, t, k)
        d = corp_decomposition(p, t, k)
        for name,score in (('Brier',((q-y)**2).mean()),('log score',-(y*np.log(q)+(1-y)*np.log(1-q)).mean())):
            assert d[name]==pytest.approx(score) and d[name]==pytest.approx(d[f'{name} MCB']-d[f'{name} DSC']+d[f'{name} UNC'])
            assert d[f'{name} MCB']>=-1e-9 and d[f'{name} DSC']>=-1e-9

def test_the_decomposition_of_certain_probabilities():
    d = corp_decomposition(torch.eye(3)[[0,1,2,0]], torch.tensor([0,1,2,1]), 1)
    assert d['log score']==pytest.approx(-np.log(TINY)/4) and all(np.isfinite(list(d.values())))

def test_the_decomposition_takes_intervals():
    p,t = draw(300, 4, sharper=1.5)
    b = bootstrap(corp_decomposition, p, t, n=40, groups=patients(300))
    assert b.value.to_dict()==corp_decomposition(p, t) and (b.low<=b.value+1e-9).all() and (b.value<=b.high+1e-9).all() and b.low.min()>=0

def outside(p, t, k, **kw):
    r = corp(p, t, k, n=100, **kw)
    return 1-((r.low<=r.frequency+1e-9) & (r.frequency<=r.high+1e-9)).mean()

def test_the_region_of_a_calibrated_network():
    inside = np.mean([outside(*draw(300, 4, seed=i), None if i%2 else 2) for i in range(40)])
    assert .01<inside<.1 and outside(*draw(1500, 4, sharper=2.), None)>.5
    rows = [tenfold(*draw(60, 4, seed=i)) for i in range(30)]
    naive,by_patient = (np.mean([outside(p, t, None, groups=g if by else None) for p,t,g in rows]) for by in (False,True))
    assert naive>.3 and by_patient<.12

def test_regions_have_a_seed():
    p,t = draw(100, 3)
    state = np.random.get_state()[1].copy()
    a,b,c = (corp(p, t, 1, n=20, seed=i) for i in (1,1,2))
    assert a.equals(b) and not a.equals(c) and (np.random.get_state()[1]==state).all()

# Tests of calibration

def test_calibration_tests_by_their_formulas():
    p,t = draw(400, 5, sharper=1.2)
    y,z = torch.nn.functional.one_hot(t, 5).double(),calibration_test(p, t).z
    S2,S3 = p.pow(2).sum(1),p.pow(3).sum(1)
    brier_scores = (p-y).square().sum(1)
    assert z['all classes']==pytest.approx(((brier_scores-1+S2).sum()/(4*(S3-S2**2)).sum().sqrt()).item())
    q,hit = one_outcome(p, t)
    assert z['confidence minus accuracy']==pytest.approx((q-hit).sum()/(q*(1-q)).sum()**.5)
    for k,name in ((None,'top-1 prediction'),(2,'Spiegelhalter')):
        q,hit = one_outcome(p, t, k)
        assert calibration_test(p, t, k).z[name]==pytest.approx(((hit-q)*(1-2*q)).sum()/((1-2*q)**2*q*(1-q)).sum()**.5)
    rows = np.random.default_rng(0).integers(400, size=300)
    pd.testing.assert_frame_equal(calibration_test(sample_stats(p, t).take(rows)), calibration_test(p[rows], t[rows]))
    big = draw(10_000, 5)
    assert (calibration_test(*big).p>.01).all()  # read in chunks

@pytest.mark.references
def test_spiegelhalter_as_mapie_says():
    mapie = importlib.import_module('mapie.metrics.calibration')
    p,t = draw(400, 5, sharper=1.2)
    for k,name in ((None,'top-1 prediction'),(2,'Spiegelhalter')):
        q,y = one_outcome(p, t, k)
        assert calibration_test(p, t, k).z[name]==pytest.approx(mapie.spiegelhalter_statistic(y, q))

def test_calibration_tests_keep_their_level_and_find_what_is_wrong():
    null = pd.concat([calibration_test(*draw(300, 4, seed=i)).z for i in range(150)], axis=1)
    assert (null.mean(axis=1).abs()<.25).all() and null.std(axis=1).between(.85, 1.15).all()
    assert ((null.abs()>1.96).mean(axis=1)<.12).all()
    wrong = pd.concat([calibration_test(*draw(500, 4, sharper=1.5, seed=i)).p for i in range(20)], axis=1)
    assert ((wrong<.05).mean(axis=1)>.7).all()

def test_calibration_tests_by_patient():
    "60 patients of ten like images: 5 % false alarms, not most"
    found = {by: pd.concat([calibration_test(p, t, groups=g if by else None).p<.05 for p,t,g in (tenfold(*draw(60, 4, seed=i)) for i in range(100))], axis=1).mean(axis=1) for by in (False,True)}
    assert (found[False]>.3).all() and (found[True]<.13).all()
    p,t = draw(60, 4)
    z,one = (calibration_test(*o).z for o in ((*tenfold(p, t)[:2],None,tenfold(p, t)[2]),(p,t)))
    d = (p.max(1).values-(p.argmax(1)==t).double()).numpy()
    v = (p.max(1).values*(1-p.max(1).values)).sum().item()
    assert z['confidence minus accuracy']==pytest.approx(10*d.sum()/max(100*(d**2).sum(), 10*v)**.5)

def test_a_finding_is_tested_too():
    f,y = draw_findings(500, 3)
    assert list(calibration_test(f, y, 1).index)==['mean probability','Spiegelhalter'] and (calibration_test(f, y, 1).p>.01).all()
    assert calibration_test(f[:,1], y[:,1]).equals(calibration_test(f, y, 1))
    assert calibration_test((f[:,1]*.5), y[:,1]).z['mean probability']<-3

def test_certain_probabilities_have_no_test():
    assert calibration_test(torch.eye(3), torch.arange(3)).isna().all(axis=None)

@pytest.mark.parametrize('multi_label', [False,True])
def test_paired_differences_of_macro_means_are_those_of_the_bootstrap(multi_label):
    rng = np.random.default_rng(3)
    n,K,patients = 600,4,np.arange(600)//5
    shared = rng.normal(size=(120,K)).repeat(5, 0)
    z = 1.5*shared
    if multi_label: y = (rng.random((n,K))<1/(1+np.exp(-z))).astype(int)
    else: y = np.array([rng.choice(K, p=o) for o in np.exp(z)/np.exp(z).sum(1, keepdims=True)])
    def preds(noise):
        e = np.exp(z+noise*rng.normal(size=(120,K)).repeat(5, 0))
        return e/(1+e) if multi_label else e/e.sum(1, keepdims=True)
    a,b = preds(.3),preds(1.5)
    d = macro_difference(a, b, y, groups=patients)
    value = macro_table(a, y).value-macro_table(b, y).value
    np.testing.assert_allclose(d.value, value, atol=1e-12)
    rows = [np.concatenate([np.flatnonzero(patients==o) for o in rng.integers(120, size=120)]) for _ in range(300)]
    draws = pd.DataFrame([macro_table(a[r], y[r]).value-macro_table(b[r], y[r]).value for r in rows])
    half = (d.high-d.low)/2
    np.testing.assert_allclose(half, 1.98*draws.std(), rtol=.15)
    alone = macro_difference(a, b, y)
    assert (alone.high-alone.low < d.high-d.low).all()  # images taken as independent

@pytest.mark.parametrize('threshold', [30,-.1,[.5,2.]])
def test_a_threshold_is_a_probability(threshold):
    p = torch.tensor([[.2,.8],[.7,.3]])
    for f in (class_table, macro_table):
        with pytest.raises(ValueError, match='a probability, from 0 to 1'): f(p, torch.tensor([1,0]), threshold=threshold)
