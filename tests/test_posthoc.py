"Calibration after training: what survives saving, exporting and fitting again, and conformal coverage."
import subprocess, sys, warnings
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from scipy import stats
from torch.utils.data import TensorDataset
from fastai.basics import CancelFitException, Callback, DataLoader, F, Learner, nn, params
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.all import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.schedule import *
from fastai.data.all import CategoryBlock, ColReader, DataBlock, TransformBlock
from fastai.learner import load_learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat
from hypothesis import given, settings, strategies as st
from conftest import K, toy_data, toy_learner, toy_model, weights
from ols_fastai.train.ols import OLSCallback
from ols_fastai.calibration.scaling import *
from ols_fastai.calibration.conformal import *

def same(a, b, atol=1e-5): torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=0, check_dtype=False)
def probs(learn, **kwargs): return learn.get_preds(**kwargs)[0]
def with_test(**kwargs):
    learn = toy_learner(**kwargs)
    learn.dls.loaders.append(learn.dls.valid.new(TensorDataset(*toy_data(90, K, seed=2))))
    return learn
def fitted(*cbs, n=2, **kwargs):
    learn = with_test(**kwargs)
    learn.fit_one_cycle(n, .1, cbs=list(cbs))
    return learn
def logits_and_targs(n, K, T=1., w=1., b=0., seed=0):
    g = torch.Generator().manual_seed(seed)
    z = 2*torch.randn(n, K, generator=g)
    return T*(z-b)/w, torch.multinomial(z.softmax(1), 1, generator=g)[:,0]

# ---- fitting

@given(T=st.floats(.3, 4.), K=st.integers(2, 8), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_known_temperature_is_found(T, K, seed):
    z,y = logits_and_targs(8000, K, T, seed=seed)
    assert abs(fit_temperature(z.softmax(1), y)/T-1) < .12

def test_a_temperature_from_logits_is_that_from_probabilities_and_holds_for_huge_logits():
    learn = fitted()
    T = calibrate(learn).model.T
    same(T, fit_temperature(*uncalibrate(learn).get_preds()))
    with torch.no_grad():
        for o in learn.model[2].parameters(): o.mul_(1000)     # probabilities would be 0 in fp32
    same(calibrate(learn, dl=learn.dls[2]).model.T if T*1000<=20 else 20., min(20., 1000*T), atol=1e-3)

def test_a_known_vector_is_found():
    w,b = torch.tensor([.5,1.,2.,1.,1.5]),torch.tensor([1.,-1.,.5,0.,-.5])
    z,y = logits_and_targs(40000, 5, w=w, b=b)                 # w*z+b makes the classes
    got_w,got_b = fit_vector(z, y)
    same(got_w, w, atol=.12); same(got_b, b, atol=.12); assert abs(got_b.mean())<1e-9
    # offsets and factors can't be told from each other's by chance: the best temperature is worse
    assert F.cross_entropy(z*got_w+got_b, y) < F.cross_entropy(z/fit_temperature(z.softmax(1), y), y)-.02

def test_what_teaches_nothing_changes_nothing():
    y = torch.arange(4)
    z = 5*torch.eye(4)
    with pytest.warns(UserWarning, match='always right'): w,b = fit_vector(z, y)
    assert (w==1).all() and (b==0).all()
    with pytest.warns(UserWarning, match='never right'): assert fit_temperature(z.softmax(1), (y+1)%4)==1

# ---- the model

def test_a_temperature_keeps_every_decision_and_gives_what_apply_temperature_gives():
    learn = fitted()
    raw = probs(learn, ds_idx=2)
    assert calibrate(learn) is learn and isinstance(learn.model, CalibratedModel)
    now = probs(learn, ds_idx=2)
    assert torch.equal(now.argmax(1), raw.argmax(1)) and not torch.allclose(now, raw, atol=1e-3)
    same(now, apply_temperature(raw, learn.model.T))
    assert torch.equal(probs(uncalibrate(learn), ds_idx=2), raw)

def test_vector_scaling_in_the_learner():
    learn = fitted()
    z,y = learn.get_preds(act=lambda x: x)
    w,b = fit_vector(z, y)
    z2 = learn.get_preds(ds_idx=2, act=lambda x: x)[0]
    same(probs(calibrate(learn, kind='vector'), ds_idx=2), (z2*w+b).softmax(1)); assert learn.model.T is None

def test_a_temperature_for_each_image_in_the_learner():
    learn = fitted()
    raw,wb = probs(learn, ds_idx=2),fit_entropy_temperature(*learn.get_preds())
    now = probs(calibrate(learn, kind='entropy'), ds_idx=2)
    same(now, apply_temperature(raw, entropy_temperature(raw, *wb))); assert torch.equal(now.argmax(1), raw.argmax(1)) and learn.model.T is None

def test_calibrating_again_starts_from_the_bare_network():
    learn = fitted()
    T = calibrate(learn).model.T
    calibrate(learn, kind='vector'); calibrate(learn)
    same(learn.model.T, T); assert isinstance(learn.model.model, nn.Sequential)

@pytest.mark.parametrize('kind', ['temperature','entropy','vector'])
def test_save_and_load(tmp_path, kind):
    learn = fitted(path=tmp_path)
    learn.save('bare')
    raw = probs(learn, ds_idx=2)
    calibrate(learn, kind=kind); now = probs(learn, ds_idx=2); used = learn.model.used.clone()
    assert not torch.allclose(now, raw, atol=1e-3)
    learn.save('calibrated')
    learn.load('bare'); assert torch.equal(probs(learn, ds_idx=2), raw) and not len(learn.model.used)   # no scaling on weights of before
    learn.load('calibrated'); assert torch.equal(probs(learn, ds_idx=2), now) and torch.equal(learn.model.used, used)
    new = with_test(path=tmp_path, model=CalibratedModel(toy_model(seed=5)))
    new.load('calibrated'); assert torch.equal(probs(new, ds_idx=2), now)
    with pytest.raises(ValueError, match='60 of its 60'): check_not_calibrated_on(new, new.dls.valid)
    with pytest.raises(RuntimeError, match='Unexpected key'): with_test(path=tmp_path).load('calibrated')
    with pytest.raises(RuntimeError, match='cbs=Calibrate'): new.fit(1)   # known to be calibrated from its file

def as_point(r): return torch.tensor([r['a'],r['b']]).float()
def by_split(d): return [np.flatnonzero(d['split']==o).tolist() for o in ('train','valid')]
def frame_learner(**kwargs):
    "A learner on a table with file names, which `predict` and `export` work on"
    x,y = toy_data(150)
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(150)], a=x[:,0], b=x[:,1], label=[f'c{o}' for o in y], split=['train']*90+['valid']*60))
    block = DataBlock(blocks=(TransformBlock,CategoryBlock), get_x=as_point, get_y=ColReader('label'), splitter=by_split)
    return Learner(block.dataloaders(df, bs=30, num_workers=0, device='cpu'), toy_model(), loss_func=CrossEntropyLossFlat(), **kwargs),df

worker = """
import sys, pandas as pd, torch
from fastai.learner import load_learner
learn = load_learner(sys.argv[1])
df = pd.read_pickle(sys.argv[2])
with learn.no_bar(): p,one = learn.get_preds(dl=learn.dls.test_dl(df))[0],learn.predict(df.iloc[0])
torch.save(dict(preds=torch.Tensor(p), one=torch.Tensor(one[2]), T=learn.model.T, used=learn.model.used), sys.argv[3])
"""
@pytest.mark.parametrize('kind', ['temperature','entropy','vector'])
def test_an_exported_learner_gives_the_same_in_a_fresh_process(tmp_path, kind):
    learn,df = frame_learner(path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, .1, cbs=[OLSCallback(),Calibrate(kind)])
        now = learn.get_preds()[0]
    new = df[df['split']=='valid']
    learn.export('m.pkl'); new.to_pickle(tmp_path/'new.pkl')
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', worker, *(tmp_path/o for o in ('m.pkl','new.pkl','out.pt'))], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert not r.returncode, r.stderr
    out = torch.load(tmp_path/'out.pt')
    same(out['preds'], now, atol=1e-6); same(out['one'], now[0], atol=1e-6)
    assert learn.model.is_scaled and out['T']==learn.model.T and torch.equal(out['used'], learn.model.used) and len(out['used'])==60

def test_predict_gives_calibrated_probabilities():
    learn,df = frame_learner()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
    with torch.no_grad(): learn.model[2].weight.mul_(4)
    with learn.no_bar():
        raw = learn.predict(df.iloc[0])
        calibrate(learn)
        now = learn.predict(df.iloc[0])
    assert now[0]==raw[0] and abs(learn.model.T-1)>.1
    same(now[2], apply_temperature(raw[2][None], learn.model.T)[0])

def test_parts_of_the_network_are_found_through_the_wrapper():
    learn = fitted(splitter=lambda m: [params(m[0]), params(m[1:])])
    calibrate(learn, dl=learn.dls[2])
    assert learn.model[0] is learn.model.model[0] and len(learn.model)==3
    learn.create_opt(); assert len(learn.opt.param_lists)==2   # a splitter written for the network
    with pytest.raises(AttributeError, match='no_such'): _ = learn.model.no_such

def test_training_a_calibrated_network_is_an_error_until_it_is_uncalibrated():
    learn = calibrate(fitted())
    before = weights(learn)
    with pytest.raises(RuntimeError, match=r'cbs=Calibrate\(\)'): learn.fit(1)
    with pytest.raises(RuntimeError, match='uncalibrate'): learn.lr_find(show_plot=False)
    assert torch.equal(weights(learn), before)
    uncalibrate(learn).fit(1)
    assert not torch.equal(weights(learn), before)

# ---- never on the same images twice

def test_the_split_that_calibrated_is_named_by_its_file():
    learn,df = frame_learner()
    check_not_calibrated_on(learn, learn.dls.valid)
    with learn.no_bar(): calibrate(learn)
    with pytest.raises(ValueError, match=r'^the validation set: 60 of its 60 images, the first 90.png, calibrated this network'): check_not_calibrated_on(learn, learn.dls.valid, 'the validation set')
    new = df.assign(filename=[f'new{i}.png' for i in range(150)])
    check_not_calibrated_on(learn, learn.dls.test_dl(new.iloc[:20], with_labels=True))
    mixed = pd.concat([new.iloc[:20], df.iloc[[100]]])
    with pytest.raises(ValueError, match='1 of its 21 images, the first 100.png'): check_not_calibrated_on(learn, learn.dls.test_dl(mixed, with_labels=True))
    check_not_calibrated_on(uncalibrate(learn), learn.dls.valid)

def test_images_from_list_files(tmp_path):
    import cv2
    from ols_fastai.data.loaders import image_dls
    rng = np.random.default_rng(0)
    for split,n in (('train',12),('valid',9),('test',6)):
        rows = [dict(filename=f'{split}_{i}.png', label='abc'[i%3]) for i in range(n)]
        for r in rows: assert cv2.imwrite(str(tmp_path/r['filename']), rng.integers(0, 255, (8,8,3), dtype=np.uint8))
        pd.DataFrame(rows).to_csv(tmp_path/f'{split}.csv', index=False)
    dls = image_dls(*(tmp_path/f'{o}.csv' for o in ('train','valid','test')), size=8, bs=4, num_workers=0, device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(8*8*dls.one_batch()[0].shape[1], 3)))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=Calibrate())
        assert len(learn.model.used)==9
        with pytest.raises(ValueError, match='9 of its 9 images, the first valid_0.png'): check_not_calibrated_on(learn, dls.valid)
        check_not_calibrated_on(learn, dls[2])
        with pytest.raises(ValueError, match='trained on'): calibrate(learn, ds_idx=0)
        with pytest.raises(ValueError, match='trained on'): calibrate(learn, dl=dls.test_dl(pd.read_csv(tmp_path/'train.csv'), with_labels=True))

def test_not_on_training_images():
    learn,df = frame_learner()
    with pytest.raises(ValueError, match='trained on'): calibrate(learn, ds_idx=0)
    with pytest.raises(ValueError, match='trained on'): calibrate(learn, dl=learn.dls.test_dl(df.iloc[80:100], with_labels=True))
    learn = toy_learner()
    x,y = learn.dls.train.dataset.tensors
    with pytest.raises(ValueError, match='trained on'): calibrate(learn, dl=learn.dls.valid.new(TensorDataset(x[:5],y[:5])))

def test_not_on_a_plain_data_set_that_is_trained_on():
    learn = toy_learner()
    pairs = list(zip(*toy_data(40)))                           # a list has neither items nor tensors, and is not read to compare it
    learn.dls.loaders[0] = DataLoader(pairs, bs=20, num_workers=0)
    with pytest.raises(ValueError, match='trained on'): calibrate(learn, ds_idx=0)

class Chaos(Callback):
    order = 90
    def __init__(self, f, on): setattr(self, on, lambda: f(self))

# ---- errors

dense = [toy_data(60)[0],torch.stack([toy_data(60)[1]]*2, 1)]  # two labels an image, as in segmentation
@pytest.mark.parametrize('kwargs,message', [
    (dict(loss_func=nn.NLLLoss()), 'NLLLoss'), (dict(loss_func=BCEWithLogitsLossFlat()), 'softmax'), (dict(loss_func=lambda z,y: z.mean()), 'cross-entropy'),
    (dict(model=nn.Sequential(toy_model(), nn.Softmax(1))), 'gives probabilities'), (dict(model=nn.Sequential(toy_model(), nn.LogSoftmax(1))), 'gives log-probabilities'),
    (dict(model=nn.Sequential(toy_model(2*K), nn.Unflatten(1, (K,2))), valid=dense, loss_func=CrossEntropyLossFlat(axis=1)), r'logits \(N,K\).*\(60, 6, 2\), \(60, 2\)')])
def test_what_can_not_be_calibrated(kwargs, message):
    with pytest.raises(ValueError, match=message): calibrate(toy_learner(**kwargs))

def test_outputs_that_are_not_finite_and_missing_classes():
    learn = toy_learner()
    with torch.no_grad(): learn.model[2].bias[0] = float('nan')
    with pytest.raises(ValueError, match='not finite for 60 of 60'): calibrate(learn)
    x,y = toy_data(60, seed=1)
    learn = toy_learner(valid=(x[y!=2],y[y!=2]))
    with pytest.raises(ValueError, match=r'none of 1 of 6 classes \(2\)'): calibrate(learn, kind='vector')
    assert not isinstance(learn.model, CalibratedModel)

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), FocalLossFlat(), nn.CrossEntropyLoss(), F.cross_entropy])
def test_losses_of_a_softmax_are_taken(loss): assert calibrate(toy_learner(loss_func=loss)).model.is_scaled

# ---- the callback

def test_calibrated_ols_is_ols_with_a_temperature():
    def run(*cbs):
        learn = fitted(OLSCallback(), *cbs)
        r = learn.recorder
        return learn,(r.values,r.lrs,r.losses,r.iters,r.hps)
    (learn,log),(bare,log_bare) = run(Calibrate()),run()
    assert log==log_bare and len(log[0])==2 and learn.model.is_scaled   # the fit's record is not that of the prediction inside
    same(learn.model.T, fit_temperature(*bare.get_preds())); same(probs(learn, ds_idx=2), apply_temperature(probs(bare, ds_idx=2), learn.model.T))
    assert torch.equal(learn.soft_labels.S, bare.soft_labels.S)

def test_a_second_fit_goes_on_from_the_bare_network_and_calibrates_anew():
    cb = OLSCallback()
    learn,bare = fitted(cb, Calibrate()),fitted(cb2 := OLSCallback())
    T = learn.model.T
    seen = []
    learn.fit(2, cbs=[cb,Calibrate(),Chaos(lambda o: seen.append(o.learn.training and o.learn.model.is_scaled), 'after_pred')]); bare.fit(2, cbs=cb2)
    assert not any(seen) and cb.n_trained==4 and learn.model.T!=T and not isinstance(learn.model.model, CalibratedModel)
    same(weights(learn), weights(bare)); same(learn.model.T, fit_temperature(*bare.get_preds()))

def test_fine_tune():
    learn = with_test(splitter=lambda m: [params(m[0]), params(m[1:])])
    learn.add_cbs([OLSCallback(),Calibrate()])
    learn.fine_tune(2, freeze_epochs=1)
    T = learn.model.T
    same(T, fit_temperature(*uncalibrate(learn).get_preds())); assert T!=1

def test_validate_get_preds_and_lr_find_do_nothing():
    learn = with_test(cbs=Calibrate())
    learn.validate(); probs(learn); learn.lr_find(show_plot=False)
    assert not isinstance(learn.model, CalibratedModel)
    learn.fit(1)
    T,before = learn.model.T,weights(learn)
    learn.validate(); probs(learn, ds_idx=2); learn.lr_find(show_plot=False)
    assert learn.model.T==T and learn.model.is_scaled and torch.equal(weights(learn), before)

def test_the_temperature_is_that_of_the_epoch_that_stays(tmp_path):
    def spoil(o):
        if o.learn.epoch==1:
            with torch.no_grad(): o.learn.model[2].weight.mul_(-5)
    learn = with_test(path=tmp_path)
    learn.fit(2, .1, cbs=[Calibrate(),SaveModelCallback(),Chaos(spoil, 'after_train')])
    T = learn.model.T
    same(T, fit_temperature(*uncalibrate(learn).get_preds()))   # of the first epoch's weights, which were loaded
    assert T<2                                                  # those of the second are worse than nothing
    learn.fit(1, 1e-4, cbs=[Calibrate(),SaveModelCallback()]); assert learn.model.is_scaled   # saves and loads its own weights again
    learn.fit(1, 1e-4, cbs=[Calibrate(),SaveModelCallback()]); assert learn.model.is_scaled

def test_interrupted_and_stopped_fits():
    def boom(ex):
        def f(o):
            if o.learn.training and o.learn.epoch==1: raise ex
        return f
    learn = fitted(Calibrate())
    with pytest.raises(KeyboardInterrupt): learn.fit(3, cbs=[Calibrate(),Chaos(boom(KeyboardInterrupt()), 'after_batch')])
    assert not learn.model.is_scaled and not len(learn.model.used)   # new weights have no temperature
    learn.validate(); assert not learn.model.is_scaled
    learn.fit(3, cbs=[Calibrate(),Chaos(boom(CancelFitException()), 'after_batch')]); assert learn.model.is_scaled and len(learn.model.used)==60
    learn = with_test()
    learn.fit(5, 1e-6, cbs=[Calibrate(),EarlyStoppingCallback(min_delta=1.)]); assert len(learn.recorder.values)<5 and learn.model.is_scaled

def test_the_callback_fails_before_training_and_says_when_it_diverged():
    learn = toy_learner(loss_func=BCEWithLogitsLossFlat()); before = weights(learn)
    with pytest.raises(ValueError, match='softmax'): learn.fit(1, cbs=Calibrate())
    with pytest.raises(TypeError, match='type set'): toy_learner(model=learn.model).fit(1, cbs=Calibrate(dl=DataLoader([({1,2},0)]*4, bs=2, num_workers=0)))
    assert torch.equal(weights(learn), before)
    learn = with_test()
    with pytest.raises(ValueError, match='two Calibrate'): learn.fit(1, cbs=[Calibrate(),Calibrate()])
    with pytest.raises(ValueError, match='trained on'): learn.fit(1, cbs=Calibrate(dl=learn.dls.train))
    learn.dls.loaders = learn.dls.loaders[:1]
    with pytest.raises(ValueError, match='no validation set'): learn.fit(1, cbs=Calibrate())
    def spoil(o):
        with torch.no_grad(): o.learn.model[2].weight.fill_(float('nan'))
    learn = with_test()
    with pytest.raises(ValueError, match='not finite'): learn.fit(1, cbs=[Calibrate(),Chaos(spoil, 'after_train')])

def test_the_prediction_inside_is_no_fit_to_other_callbacks():
    seen,learn = [],with_test()
    learn.fit(1, cbs=[Calibrate(),*(Chaos(partial(lambda o, e: seen.append(e), e=e), e) for e in ('before_fit','after_epoch','after_fit'))])
    assert seen==['before_fit','after_epoch','after_fit'] and learn.model.is_scaled

def test_a_split_of_its_own():
    learn = with_test()
    learn.fit(1, cbs=Calibrate(dl=learn.dls[2]))
    with pytest.raises(ValueError, match='90 of its 90'): check_not_calibrated_on(learn, learn.dls[2])
    check_not_calibrated_on(learn, learn.dls.valid)

def test_mixed_precision():
    learn = with_test()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # no GPU
        learn.fit(1, cbs=[MixedPrecision(),Calibrate()])
    assert learn.model.is_scaled

def test_the_callback_survives_an_export(tmp_path):
    learn,df = frame_learner(path=tmp_path, cbs=Calibrate())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.export('m.pkl')
        again = load_learner(tmp_path/'m.pkl')
        again.dls = learn.dls
        same(again.get_preds()[0], learn.get_preds()[0])
        again.fit(1); assert again.model.is_scaled and again.model.T!=learn.model.T

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

def test_sets_are_not_judged_on_what_calibrated_them():
    z,y = logits_and_targs(300, 4); p = z.softmax(1)
    s = ConformalSets(p[:150], y[:150])
    for o in (slice(0,150), slice(20,40)):
        with pytest.raises(ValueError, match='calibrated on'): s.table(p[o], y[o])
    with pytest.raises(ValueError, match='calibrated on'): s.table(p[:150].flip(0), y[:150].flip(0))
    s.table(p[150:], y[150:])
    sure = torch.eye(4)[y]                                     # rows that are one-hot are alike by chance
    ConformalSets(torch.cat([p[:150],sure[:50]]), y[:200]).table(torch.cat([p[150:],sure[50:60]]), torch.cat([y[150:],y[50:60]]))
