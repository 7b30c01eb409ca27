"Calibration after training: the fits against slow ones, and what survives saving, exporting and fitting again."
import importlib, shutil, subprocess, sys, warnings
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from scipy import stats
from PIL import Image
from torch.utils.data import TensorDataset
from fastai.basics import CancelFitException, Callback, DataLoader, DataLoaders, F, Learner, nn, params
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.all import EarlyStoppingCallback, MixUp, SaveModelCallback
from fastai.callback.schedule import *
from fastai.data.all import CategoryBlock, ColReader, DataBlock, TransformBlock
from fastai.learner import load_learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, MSELossFlat
from hypothesis import given, settings, strategies as st
from conftest import K, toy_data, toy_learner, toy_model, weights
from ols_fastai.train.ols import OLSCallback
from ols_fastai.data.loaders import image_dls
from ols_fastai.data.identity import *
from ols_fastai.calibration.metrics import nll
from ols_fastai.calibration.temperature import *
from ols_fastai.calibration.report import calibration_report
from ols_fastai.calibration.calibrated import *
from ols_fastai.calibration.scaling import *
from ols_fastai.calibration.interpretation import CalibrationInterpretation

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
    T = calibrate(learn, prior=None).model.T
    same(T, fit_temperature(*uncalibrate(learn).get_preds(), prior=None))
    with torch.no_grad():
        for o in learn.model[2].parameters(): o.mul_(1000)     # probabilities would be 0 in fp32
    same(calibrate(learn, prior=None).model.T/(1000*T), 1., atol=1e-3)

def slow_best(z, y, prior=None):
    "A grid of log T, in three steps"
    def nll_of(u): return F.cross_entropy(z.double()/u.exp(), y, reduction='sum') + (u**2/(2*prior**2) if prior else 0)
    mid,width = torch.tensor(0., dtype=torch.float64),9.
    for _ in range(4):
        grid = mid+torch.linspace(-width, width, 301, dtype=torch.float64)
        mid,width = grid[torch.stack([nll_of(u) for u in grid]).argmin()],width/100
    return mid.exp().item()

@given(scale=st.floats(.01, 70), n=st.integers(2, 60), K=st.integers(2, 8), prior=st.sampled_from([None,.1,.5,2.]), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_temperature_is_that_of_a_grid_search(scale, n, K, prior, seed):
    z,y = logits_and_targs(n, K, T=scale, seed=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        T = fit_temperature(z, y, prior=prior, logits=True)
    if prior or not caught: assert abs(T/slow_best(z, y, prior)-1)<1e-4
    else: assert T==1

@pytest.mark.parametrize('spread', [70,200,1000])
def test_logits_that_differ_by_more_than_a_probability_holds(spread):
    z,y = logits_and_targs(2000, 5, T=spread/2)
    T = fit_temperature(z, y, prior=None, logits=True)
    same(T/slow_best(z, y), 1., atol=1e-4)
    if spread<1000: same(fit_temperature(z.double().softmax(1), y, prior=None)/T, 1., atol=1e-3)
    # of fp32 probabilities the least likelihood is that of `nll`, which takes 0 for fp32's smallest number
    p = z.softmax(1); T = fit_temperature(p, y, prior=None)
    losses = [nll(apply_temperature(p, T*o), y) for o in (.99,1,1.01)]
    assert losses[1]==min(losses)

def test_a_temperature_far_from_1_is_found_and_an_edge_is_said():
    z,y = logits_and_targs(3000, 6, T=70)
    assert abs(fit_temperature(z, y, prior=None, logits=True)/70-1)<.1 and abs(fit_temperature(z, y, logits=True)/70-1)<.1
    with pytest.warns(UserWarning, match=r'is 10000, an edge.*range 0.0001 to 10000'): assert fit_temperature(1e4*z, y, prior=None, logits=True)==pytest.approx(T_RANGE[1])
    with pytest.warns(UserWarning, match='is 0.0001, an edge'): assert fit_temperature(1e-7*z, y, prior=None, logits=True)==pytest.approx(T_RANGE[0])

def test_never_right_can_have_a_finite_best_temperature():
    z = torch.tensor([[4.,3.,0.,0.,0.,0.]]*5+[[3.,0.,0.,2.5,0.,0.]]); y = torch.tensor([1]*5+[3])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        same(fit_temperature(z, y, prior=None, logits=True), slow_best(z, y), atol=1e-3)

def test_what_teaches_nothing_changes_nothing():
    y = torch.arange(4)
    z = 5*torch.eye(4)
    with pytest.warns(UserWarning, match=r'always right on these 4 images.*range'): assert fit_temperature(z.softmax(1), y, prior=None)==1
    with pytest.warns(UserWarning, match=r'never right on these 4 images.*range'): assert fit_temperature(z.softmax(1), (y+1)%4, prior=None)==1
    with pytest.warns(UserWarning, match='always right'): w,b = fit_entropy_temperature(z.softmax(1), y, prior=None)
    same(entropy_temperature(z.softmax(1), w, b), torch.ones(4))

def test_the_entropy_of_a_sure_prediction_is_rounding():
    p = torch.tensor([[1.,0.,0.],[1-2e-7,1e-7,1e-7]], dtype=torch.float64)
    T = entropy_temperature(p, 1., 10.)
    same(T, torch.full((2,), 10+np.log(1e-4)), atol=.5); same(T[0], T[1], atol=1e-12)

@pytest.mark.parametrize('kind', ['structured','matrix'])
def test_separable_classes_stay_bounded(kind):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat(15); z = 3*torch.eye(4)[y]+.1*torch.randn(60, 4, generator=g)
    fitted = fit_scaling(z, y, kind, say=False)
    assert fitted['matrix'].abs().max()<3 and fitted['bias'].abs().max()<3
    new = 3*torch.eye(4)[y]+2*torch.randn(60, 4, generator=g)    # some of them are wrong
    assert F.cross_entropy(scale_logits(new.double(), **fitted), y)<1.5

def test_structured_scaling_by_its_definition():
    "By gradient descent on the formula of arXiv 2511.03685"
    z,y = logits_and_targs(200, 4, w=torch.tensor([.5,1.,2.,1.]), b=torch.tensor([1.,-1.,.5,0.]))
    n,K = z.shape
    for kind in ('structured','matrix'):
        q = ((1-1/(n+1))*(z.double()/fit_temperature(z, y, logits=True)).softmax(1)+1/((n+1)*K)).log()
        M,b = torch.zeros(K, K, dtype=torch.float64, requires_grad=True),torch.zeros(K, dtype=torch.float64, requires_grad=True)
        opt = torch.optim.Adam([M,b], lr=.02)
        for _ in range(2000):
            opt.zero_grad()
            D = M.diagonal(); A = M if kind=='matrix' else torch.diag(D)
            (F.cross_entropy(q@(torch.eye(K)+A).T+b, y)+K/n*(b@b+D@D)+K*(K-1)/n*(A.pow(2).sum()-D@D)).backward()
            opt.step()
        A = M if kind=='matrix' else torch.diag(M.diagonal())
        want = (q@(torch.eye(K)+A).T+b).softmax(1).detach()
        same(scale_logits(z.double(), **fit_scaling(z, y, kind)).softmax(1), want, atol=1e-4)

def test_plain_vector_scaling_is_refused_before_training():
    for f in (lambda: Calibrate('vector'), lambda: calibrate(toy_learner(), kind='vector')):
        with pytest.raises(ValueError, match="use 'structured'"): f()

def test_the_prior_helps_where_there_are_few_images():
    "One image a class: maximum likelihood does harm, the prior does not"
    z,y = logits_and_targs(5000, 6, T=1.3, seed=99)
    losses = {None: [], .5: []}
    for seed in range(30):
        few = logits_and_targs(6, 6, T=1.3, seed=seed)
        for prior in losses:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                losses[prior].append(F.cross_entropy(z/fit_temperature(*few, prior=prior, logits=True), y).item())
    as_it_is = F.cross_entropy(z, y).item()
    assert np.mean(losses[.5])<as_it_is+.03 and np.mean(losses[.5])<np.mean(losses[None])-.05

def test_auto_takes_a_temperature_unless_another_is_better():
    z,y = logits_and_targs(2000, 4, w=torch.tensor([.4,1.,2.,1.]), b=torch.tensor([1.,-1.,.5,0.]))
    t = compare_kinds(z, y)
    assert choose_kind(t)!='temperature' and t.loc['temperature','difference']==0
    z,y = logits_and_targs(200, 4, T=2.)
    assert choose_kind(compare_kinds(z, y))=='temperature'
    # by hand: better by less than one standard error is not better
    t = pd.DataFrame(dict(NLL=[.9,1.], difference=[-.1,0.], **{'standard error':[.11,0.]}), index=['structured','temperature'])
    assert choose_kind(t)=='temperature' and choose_kind(t.assign(**{'standard error':[.09,0.]}))=='structured'
    learn = fitted()
    calibrate(learn, kind='auto'); assert learn.model.kind in ('temperature','structured','matrix')

def test_folds_are_by_patient_and_by_class():
    y = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))
    who = [f'p{i//4}' if i<190 else '' for i in range(200)]   # an empty cell is a patient of its own
    folds = cross_folds(y, who)
    assert set(folds)==set(range(5)) and (pd.Series(folds[:190]).groupby(who[:190]).nunique()==1).all() and len(set(folds[190:]))>1
    assert (cross_folds(y, who)==folds).all() and (cross_folds(y, who, seed=1)!=folds).any()
    with pytest.raises(ValueError, match='1 patient'): cross_folds(y, ['a']*200)
    with pytest.raises(ValueError, match='each of the 200 samples, got 3'): cross_folds(y, ['a','b','c'])

def test_refinement_does_not_see_a_temperature():
    z,y = logits_and_targs(600, 5)
    same(refinement(z, y, prior=None, logits=True), refinement(3*z, y, prior=None, logits=True), atol=1e-8)
    same(refinement(z.double().softmax(1), y), refinement(z, y, logits=True), atol=1e-8)
    assert refinement(z, y, logits=True)<F.cross_entropy(3*z, y) and refinement(z[:,torch.randperm(5)], y, logits=True)>refinement(z, y, logits=True)

@given(rho=st.floats(0, .35), T=st.floats(.5, 3), seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_temperature_and_wrong_labels_together(rho, T, seed):
    g = torch.Generator().manual_seed(seed)
    z = 5*torch.randn(3000, 6, generator=g); y = torch.multinomial(z.softmax(1), 1, generator=g)[:,0]
    wrong = torch.rand(3000, generator=g)<rho
    noisy = torch.where(wrong, (y+torch.randint(1, 6, (3000,), generator=g))%6, y)
    got_T,got_rho = fit_noisy_temperature(T*z, noisy)
    assert abs(got_rho-wrong.double().mean())<.04 and abs(got_T/T-1)<.25

def test_the_fit_of_temperature_and_wrong_labels_is_a_maximum():
    z,y = logits_and_targs(150, 4, seed=3)
    def posterior(T, rho):
        p = (z.double()/T).softmax(1).gather(1, y[:,None])
        return ((1-rho)*p+rho*(1-p)/3).log().sum().item() + stats.beta.logpdf(rho, 2, 10) - np.log(T)**2/(2*.5**2)
    T,rho = fit_noisy_temperature(z, y)
    best = max((posterior(a, b), a, b) for a in np.geomspace(.3, 3, 120) for b in np.linspace(.002, .7, 120))
    assert posterior(T, rho)>=best[0]-1e-6

# ---- the model

def test_a_temperature_keeps_every_decision_and_gives_what_apply_temperature_gives():
    learn = fitted()
    raw = probs(learn, ds_idx=2)
    assert calibrate(learn) is learn and isinstance(learn.model, CalibratedModel)
    now = probs(learn, ds_idx=2)
    assert torch.equal(now.argmax(1), raw.argmax(1)) and not torch.allclose(now, raw, atol=1e-3)
    same(now, apply_temperature(raw, learn.model.T))
    assert torch.equal(probs(uncalibrate(learn), ds_idx=2), raw)

@pytest.mark.parametrize('kind', ['structured','matrix'])
def test_structured_scaling_in_the_learner(kind):
    learn = fitted()
    z,y = learn.get_preds(act=lambda x: x)
    z2 = learn.get_preds(ds_idx=2, act=lambda x: x)[0]
    now = probs(calibrate(learn, kind=kind), ds_idx=2)
    same(now, scale_logits(z2.double(), **fit_scaling(z, y, kind)).softmax(1)); assert learn.model.T is None and learn.model.kind==kind

def test_a_temperature_for_each_image_in_the_learner():
    learn = fitted()
    raw,wb = probs(learn, ds_idx=2),fit_entropy_temperature(*learn.get_preds())
    now = probs(calibrate(learn, kind='entropy'), ds_idx=2)
    same(now, apply_temperature(raw, entropy_temperature(raw, *wb))); assert torch.equal(now.argmax(1), raw.argmax(1)) and learn.model.T is None

def test_calibrating_again_starts_from_the_bare_network():
    learn = fitted()
    T = calibrate(learn).model.T
    calibrate(learn, kind='matrix'); calibrate(learn)
    same(learn.model.T, T); assert isinstance(learn.model.model, nn.Sequential)

@pytest.mark.parametrize('kind', KINDS)
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
@pytest.mark.parametrize('kind', KINDS)
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
    assert now[0]==raw[0] and abs(learn.model.T-1)>.05
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

def test_rows_are_known_by_what_the_network_gets_of_them():
    learn,df = frame_learner()                                 # its file names are of no file
    check_not_calibrated_on(learn, learn.dls.valid)
    with learn.no_bar(): calibrate(learn)
    with pytest.raises(ValueError, match=r'^the validation set: 60 of its 60 images, the first number 0, calibrated this network'): check_not_calibrated_on(learn, learn.dls.valid, 'the validation set')
    def test_dl(df): return learn.dls.test_dl(df, with_labels=True)
    renamed = df.assign(filename=[f'new{i}.png' for i in range(150)])
    with pytest.raises(ValueError, match='20 of its 20'): check_not_calibrated_on(learn, test_dl(renamed.iloc[90:110]))
    other = df.assign(a=df['a']+1)
    check_not_calibrated_on(learn, test_dl(other.iloc[90:150]))
    with pytest.warns(UserWarning, match='1 of its 21 images, the first number 20, equal'): check_not_calibrated_on(learn, test_dl(pd.concat([other.iloc[:20], df.iloc[[100]]])))
    forget_images(learn)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_not_calibrated_on(learn, learn.dls.valid)
    check_not_calibrated_on(uncalibrate(learn), learn.dls.valid)

def hospital(root, seed, n=24):
    "Images with the same names everywhere"
    import cv2
    root.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(n): assert cv2.imwrite(str(root/f'{i}.png'), rng.integers(0, 255, (16,16)).astype('uint8'))
    return pd.DataFrame(dict(filename=[f'{i}.png' for i in range(n)], label=list('xxyxyyyx')*(n//8), split=['train']*(n//2)+['valid']*(n//2)))

def image_learner(dls, **kwargs):
    n = dls.one_batch()[0].shape[1]
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(16*16*n, 2)), loss_func=CrossEntropyLossFlat(), **kwargs)

from fastai.vision.all import ImageBlock, IntToFloatTensor, PILImage, Resize
def our_dls(df, root): return image_dls(df, root=root, size=16, bs=4, num_workers=0, device='cpu')
def split_of(df): return [np.flatnonzero(df['split']==o).tolist() for o in ('train','valid')]
def block_dls(df, root, get_x, items=None, blocks=(ImageBlock,CategoryBlock)):
    labels = df.set_index('filename').label
    def get_y(o): return labels[Path(o).name] if isinstance(o, (str,Path)) else o['label'] if isinstance(o, pd.Series) else labels.iloc[o]
    block = DataBlock(blocks, get_x=get_x, get_y=get_y, splitter=lambda _: split_of(df), item_tfms=Resize(16))
    return block.dataloaders(df if items is None else items, bs=4, num_workers=0, device='cpu')
ways = dict(ours=our_dls,
            ColReader=lambda df, root: block_dls(df, root, ColReader('filename', pref=Path(root))),
            text_prefix=lambda df, root: block_dls(df, root, ColReader('filename', pref=f'{root}/')),
            paths=lambda df, root: block_dls(df, root, None, [Path(root)/o for o in df.filename]),
            texts=lambda df, root: block_dls(df, root, None, [f'{root}/{o}' for o in df.filename]),
            numbers=lambda df, root: block_dls(df, root, lambda i: Path(root)/df.filename[i], list(range(len(df)))),
            opened=lambda df, root: block_dls(df, root, lambda i: PILImage.create(Path(root)/df.filename[i]), list(range(len(df))), (TransformBlock(batch_tfms=IntToFloatTensor),CategoryBlock)))

@pytest.mark.parametrize('way', ways)
def test_images_are_known_by_what_they_are_not_by_their_names(tmp_path, way, monkeypatch):
    a,b = hospital(tmp_path/'a', 0),hospital(tmp_path/'b', 1)
    one_up = a.assign(filename='a/'+a.filename)
    (tmp_path/'link').symlink_to(tmp_path/'a')
    dls = ways[way](a, tmp_path/'a')
    def from_one_up(): return (our_dls if way=='ours' else ways['ColReader'])(one_up, tmp_path)
    def refused(f, match):
        with pytest.raises(ValueError, match=match): f()
    def learn_():
        learn = image_learner(dls)
        learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None
        return learn
    learn = learn_()
    with learn.no_bar(), learn.no_logging():
        calibrate(learn)
        check_not_calibrated_on(learn, ways[way](b, tmp_path/'b').valid)                           # another hospital
        refused(lambda: check_not_calibrated_on(learn, dls.valid), '12 of its 12')
        refused(lambda: check_not_calibrated_on(learn, ways[way](a, tmp_path/'link').valid), '12 of its 12')
        refused(lambda: calibrate(learn, dl=dls.train), 'trained on')
        refused(lambda: calibrate(learn, dl=ways[way](a, tmp_path/'link').train), 'trained on')
        if way!='opened':
            refused(lambda: check_not_calibrated_on(learn, from_one_up().valid), '12 of its 12')
            refused(lambda: calibrate(learn, dl=from_one_up().train), 'trained on')
            monkeypatch.chdir(tmp_path)
            refused(lambda: check_not_calibrated_on(learn, ways[way](a, 'a').valid), '12 of its 12')
            one = a.copy(); one.loc[12:,'filename'] = [f'b{i}.png' for i in range(11)]+['20.png']     # one calibration image among others
            for i in range(11): (tmp_path/'a'/f'b{i}.png').write_bytes((tmp_path/'b'/f'{i}.png').read_bytes())
            refused(lambda: check_not_calibrated_on(learn, ways[way](one, tmp_path/'a').valid), '1 of its 12 images, the first .*20.png')
        calibrate(learn, dl=ways[way](b, tmp_path/'b').train)                                       # another hospital's
        calibrate(learn, dl=dls.train, allow_overlap=True); assert len(learn.model.used)==12

def test_a_calibrated_learner_knows_its_images_on_another_machine(tmp_path):
    a,b = hospital(tmp_path/'a', 0),hospital(tmp_path/'b', 1)
    learn = image_learner(our_dls(a, tmp_path/'a'), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        calibrate(learn)
        learn.export('m.pkl')
        (tmp_path/'a').rename(tmp_path/'there')                # their folder has another name there, and their old place other images
        (tmp_path/'b').rename(tmp_path/'a')
        again = load_learner(tmp_path/'m.pkl')
        with pytest.raises(ValueError, match='12 of its 12'): check_not_calibrated_on(again, our_dls(a, tmp_path/'there').valid)
        check_not_calibrated_on(again, our_dls(b, tmp_path/'a').valid)

def test_a_link_to_a_training_image_is_a_training_image(tmp_path):
    a,b = hospital(tmp_path/'a', 0),hospital(tmp_path/'b', 1)
    (tmp_path/'b'/'12.png').unlink(); (tmp_path/'b'/'12.png').symlink_to(tmp_path/'a'/'3.png')
    learn = image_learner(our_dls(a, tmp_path/'a'))
    with learn.no_bar(), pytest.raises(ValueError, match='trained on.*b/12.png'): calibrate(learn, dl=our_dls(b, tmp_path/'b').valid)

def test_a_copy_is_warned_of_and_copies_are_refused(tmp_path):
    a,b = hospital(tmp_path/'a', 0, 240),hospital(tmp_path/'b', 1, 240)
    learn = image_learner(our_dls(a, tmp_path/'a'))
    def copy(n):
        for i in range(n): (tmp_path/'b'/f'{150+i}.png').write_bytes((tmp_path/'a'/f'{200+i}.png').read_bytes())
        return our_dls(b, tmp_path/'b').valid
    with learn.no_bar(), learn.no_logging():
        calibrate(learn)
        with pytest.warns(UserWarning, match='1 of its 120 images, the first .*150.png, equal'): check_not_calibrated_on(learn, copy(1))
        with pytest.raises(ValueError, match='5 of its 120'): check_not_calibrated_on(learn, copy(5))

def test_images_from_list_files(tmp_path):
    import cv2
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
        with pytest.raises(ValueError, match='9 of its 9 images, the first .*/valid_0.png'): check_not_calibrated_on(learn, dls.valid)
        check_not_calibrated_on(learn, dls[2])
        with pytest.raises(ValueError, match='trained on.*/train_0.png'): calibrate(learn, ds_idx=0)
        with pytest.raises(ValueError, match='trained on'): calibrate(learn, dl=dls.test_dl(pd.read_csv(tmp_path/'train.csv'), with_labels=True))

def test_numbers_do_not_stand_for_images():
    def number_dls(seed):
        x,y = toy_data(60, seed=seed)
        block = DataBlock((TransformBlock,CategoryBlock), get_items=lambda _: range(60), get_x=lambda i: x[i], get_y=lambda i: int(y[i]), splitter=lambda o: (list(range(30)),list(range(30,60))))
        return block.dataloaders(None, bs=10, num_workers=0, device='cpu')
    learn = Learner(number_dls(0), toy_model(), loss_func=CrossEntropyLossFlat())
    with learn.no_bar():
        calibrate(learn)
        check_not_calibrated_on(learn, number_dls(1).valid)
        with pytest.raises(ValueError, match='30 of its 30'): check_not_calibrated_on(learn, number_dls(0).valid)
        with pytest.raises(ValueError, match='trained on'): calibrate(learn, dl=number_dls(0).train)

def test_one_equal_row_does_not_refuse_a_set():
    learn = with_test()
    x,y = (o.clone() for o in toy_data(300, seed=5))
    x[3] = learn.dls.train.dataset.tensors[0][7]
    with pytest.warns(UserWarning, match='equal ones .1 of 300'): calibrate(learn, dl=learn.dls.valid.new(TensorDataset(x,y)))
    z = x.clone()+1; z[9] = x[8]
    with pytest.warns(UserWarning, match='1 of its 300'): check_not_calibrated_on(learn, learn.dls.valid.new(TensorDataset(z,y)))
    z[:4] = x[:4]
    with pytest.raises(ValueError, match='5 of its 300'): check_not_calibrated_on(learn, learn.dls.valid.new(TensorDataset(z,y)))

def test_a_table_without_transforms():
    from fastai.tabular.all import TabularDataLoaders, tabular_learner
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(80,2)), columns=['a','b']).assign(y=rng.integers(0, 3, 80))
    dls = TabularDataLoaders.from_df(df, cont_names=['a','b'], y_names='y', y_block=CategoryBlock(), valid_idx=list(range(40,80)), bs=20, device='cpu')
    learn = tabular_learner(dls, layers=[4])
    with learn.no_bar(), learn.no_logging():
        calibrate(learn); assert learn.model.used[:,0].unique().numel()==40
        with pytest.raises(ValueError, match='40 of its 40'): check_not_calibrated_on(learn, dls.valid)
        with pytest.raises(ValueError, match='trained on'): calibrate(learn, dl=dls.train)
        check_not_calibrated_on(learn, dls.test_dl(df.iloc[:30]))

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

# ---- what a loaded network knows

def test_a_loaded_network_knows_the_images_of_its_training(tmp_path):
    folder = tmp_path/'images'
    folder.mkdir()
    for i in range(40): Image.fromarray(np.random.default_rng(i).integers(0, 255, (8,8), np.uint8)).save(folder/f'{i}.png')
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(40)], label=list('ab')*20, split=['train']*20+['valid']*10+['test']*10))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dls = image_dls(df, root=folder, size=8, bs=5)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1, cbs=[OLSCallback(.25), Calibrate()])
    learn.export('a.pkl'); learn.save('a')
    new = load_learner(tmp_path/'a.pkl')
    train,test = (df[df['split']==o] for o in ('train','test'))
    with new.no_bar():
        with pytest.warns(UserWarning, match='trained on 20 of these 20 images'): CalibrationInterpretation.from_learner(new, dl=train)
        with pytest.raises(ValueError, match='trained on images of this loader'): calibrate(new, dl=train)
        assert new.model.kind=='temperature'                    # a refusal leaves the scaling
        loaded = CalibrationInterpretation.from_learner(new, dl=test)
        settings = loaded.settings
        assert loaded.valid_preds(used=True) is None
        calibrate(new, dl=test)
        with pytest.raises(ValueError, match='trained on images of this loader'): calibrate(new, dl=train)
    assert settings['callbacks']=='OLSCallback(alpha=0.25), Calibrate' and settings['largest learning rate']==.1
    assert settings['epochs asked of the last fit']==1 and settings['parameters']==386
    again = Learner(dls, CalibratedModel(nn.Sequential(nn.Flatten(), nn.Linear(192, 2))), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    again.load('a'); assert len(again.model.train_ids)==40   # paths and contents
    # copies elsewhere are known by what they hold
    shutil.copytree(folder, tmp_path/'copies')
    copies = train.assign(filename=[str(tmp_path/'copies'/o) for o in train.filename])
    new = load_learner(tmp_path/'a.pkl')
    with new.no_bar(), pytest.raises(ValueError, match='trained on images of this loader'): calibrate(new, dl=copies)
    with new.no_bar(), pytest.warns(UserWarning, match='trained on 20 of these 20 images'): CalibrationInterpretation.from_learner(new, dl=copies)

def test_a_training_file_that_is_gone_does_not_hinder_a_calibration(tmp_path):
    for i in range(30): Image.fromarray(np.random.default_rng(i).integers(0, 255, (8,8), np.uint8)).save(tmp_path/f'{i}.png')
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(30)], label=list('ab')*15, split=['train']*20+['valid']*10))
    learn = Learner(image_dls(df, root=tmp_path, size=8, bs=5), nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), loss_func=CrossEntropyLossFlat())
    (tmp_path/'0.png').unlink()
    with learn.no_bar(), learn.no_logging(): calibrate(learn)
    assert learn.model.kind=='temperature' and len(learn.model.train_ids)==20   # paths alone

def test_weights_without_a_scaling_say_that_it_is_gone(tmp_path):
    learn = toy_learner(); learn.path = tmp_path
    learn.save('bare')
    calibrate(learn)
    with pytest.warns(UserWarning, match='not calibrated any more'): learn.load('bare')
    assert learn.model.kind is None
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*not calibrated any more')
        learn.load('bare')

def test_patients_of_the_calibration_are_known_while_it_is_at_hand(tmp_path):
    "Among those that are judged they are said; an exported file has no names"
    learn,df = frame_learner()
    block = DataBlock(blocks=(TransformBlock,CategoryBlock), get_x=as_point, get_y=ColReader('label'), splitter=by_split)
    df = df.assign(patient=[f'p{i//3}' for i in range(len(df))])
    learn = Learner(block.dataloaders(df, bs=30, num_workers=0, device='cpu'), toy_model(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    with learn.no_bar():
        rest = df.assign(patient=[f'q{i//3}' for i in range(len(df))])
        calibrate(learn, dl=rest.iloc[::2], allow_overlap=True)
        assert learn.model.patients=={f'q{i//3}' for i in range(0, len(df), 2)}
        with pytest.warns(UserWarning, match='judged on images of .* patients who are in its calibration too, such as q'):
            CalibrationInterpretation.from_learner(learn, dl=rest.iloc[1::2])
        learn.export('a.pkl')
    assert load_learner(tmp_path/'a.pkl').model.patients==frozenset() and b'q12' not in (tmp_path/'a.pkl').read_bytes()

def test_what_can_not_be_judged_is_said_before_the_network_runs():
    learn = with_test()
    for f in (calibrate, CalibrationInterpretation.from_learner):
        with pytest.raises(ValueError, match='by its name, dl='): f(learn, learn.dls.valid)
        with pytest.raises(ValueError, match='got list'): f(learn, dl=[1, 2])
        with pytest.raises(ValueError, match='no images in this loader'): f(learn, dl=learn.dls.valid.new(TensorDataset(*toy_data(4))).new(TensorDataset(torch.zeros(0, 2), torch.zeros(0).long())))
    learn,df = frame_learner()
    for f in (calibrate, CalibrationInterpretation.from_learner):
        with pytest.raises(ValueError, match='no labels'): f(learn, dl=learn.dls.test_dl(df[90:]))
    with learn.no_bar():
        assert len(calibrate(learn, dl=df[90:]).model.used)==60   # a table is as good as its loader

def test_the_bare_network_predicts_for_the_fit_and_the_scaling_comes_back_after_an_error():
    learn = calibrate(fitted())
    T = learn.model.T
    with bare_network(learn): assert not isinstance(learn.model, CalibratedModel)
    same(calibrate(learn).model.T, T)
    nn.init.constant_(learn.model.model[2].bias, float('nan'))
    with pytest.raises(ValueError, match='not finite'): calibrate(learn)
    same(learn.model.T, T)

# ---- without the wrapper

def test_the_folded_network_is_the_wrapper():
    learn = calibrate(fitted())
    x = learn.dls[2].dataset.tensors[0]
    before = probs(learn, ds_idx=2)
    plain = fold_scaling(learn)
    same(plain(x).softmax(1), before, atol=1e-6); assert not any(isinstance(o, CalibratedModel) for o in plain.modules())
    same(torch.jit.script(plain)(x).softmax(1), before, atol=1e-6)
    assert torch.equal(probs(learn, ds_idx=2), before) and isinstance(learn.model, CalibratedModel)
    with pytest.raises(ValueError, match='60 of its 60'): check_not_calibrated_on(learn, learn.dls.valid)

class Tied(nn.Module):
    "Its last linear layer is used twice"
    def __init__(self): super().__init__(); self.first,self.last = nn.Linear(2, K),nn.Linear(K, K)
    def forward(self, x): return self.last(self.last(self.first(x)).relu())

@pytest.mark.parametrize('model,message', [(lambda: nn.Sequential(toy_model(), nn.Softplus()), 'does not give its output'), (Tied, 'does not give its output'),
                                           (lambda: nn.Sequential(nn.Unflatten(1, (2,1)), nn.Conv1d(2, K, 1), nn.Flatten()), 'no nn.Linear')])
def test_what_can_not_be_folded(model, message):
    learn = toy_learner(model=model())
    with torch.no_grad(): learn.model.eval()
    learn.model = CalibratedModel(learn.model, scale=.5)
    with pytest.raises(ValueError, match=message): fold_scaling(learn)

def test_folding_needs_a_temperature_and_a_batch(tmp_path):
    learn = fitted()
    with pytest.raises(ValueError, match='not calibrated'): fold_scaling(learn)
    for kind in ('entropy','structured','matrix'):
        with pytest.raises(ValueError, match=f'{kind} scaling'): fold_scaling(calibrate(learn, kind=kind))
    learn,df = frame_learner(path=tmp_path)
    with learn.no_bar(): calibrate(learn)
    learn.export('m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    with pytest.raises(ValueError, match='give a batch, xb='): fold_scaling(again)
    x = toy_data(9)[0]
    same(fold_scaling(again, x)(x), again.model.eval()(x), atol=1e-6)

# ---- without a held-out set

def noisy_table(n, seed, wrong=0., patients=None):
    x,y = toy_data(n, seed=seed)
    rng = np.random.default_rng(seed)
    y = np.where(rng.random(n)<wrong, (y.numpy()+rng.integers(1, K, n))%K, y.numpy())
    df = pd.DataFrame(dict(a=x[:,0], b=x[:,1], label=[f'c{o}' for o in y], split='train'))
    return df if patients is None else df.assign(patient=np.arange(n)//patients)

def fit_table(df, seen=None):
    if seen is not None: seen.append(df)
    block = DataBlock(blocks=(TransformBlock,CategoryBlock(vocab=[f'c{i}' for i in range(K)])), get_x=as_point, get_y=ColReader('label'), splitter=by_split)
    learn = Learner(block.dataloaders(df, bs=30, num_workers=0, device='cpu'), toy_model(), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(6, 3e-2, cbs=OLSCallback())
    return learn

def test_cross_calibration():
    clean,train = noisy_table(600, 1).assign(split='valid'),noisy_table(300, 0, .2, patients=3)
    learn = fit_table(pd.concat([train, clean])); before = learn.get_preds()
    seen = []
    r = cross_calibrate(learn, pd.concat([train, clean]), partial(fit_table, seen=seen))
    assert .1<r.rho<.3 and learn.model.T==pytest.approx(r.T, rel=1e-6) and nll(*learn.get_preds())<nll(*before)
    assert len(seen)==5 and len(r.logits)==300
    for k,df in enumerate(seen):                               # patients stay together, and each row is predicted by the network that did not see it
        assert not set(df.patient[df['split']=='train'])&set(df.patient[df['split']=='valid']) and (np.flatnonzero(df['split']=='valid')==np.flatnonzero(r.folds==k)).all()
        same(r.logits[r.folds==k], r.learners[k].model.eval()(torch.tensor(train[['a','b']].to_numpy()[r.folds==k]).float()), atol=1e-4)
    assert [f'c{o}' for o in r.targs]==train.label.tolist()
    with pytest.raises(ValueError, match='calibrated this network'): check_not_calibrated_on(learn, learn.dls.train)
    check_not_calibrated_on(learn, learn.dls.valid)

def test_cross_calibration_needs_every_class_in_every_training():
    train = noisy_table(100, 0, patients=2)
    learn = fit_table(pd.concat([train, train.assign(split='valid')]))
    alone = train.assign(patient=np.where(train.label=='c3', -1, train.patient))
    with pytest.raises(ValueError, match='no image of c3 to train on.*2 patients'): cross_calibrate(learn, alone, fit_table)
    with pytest.raises(ValueError, match='other classes'): cross_calibrate(learn, train.assign(label='d'+train.label), fit_names)

def fit_names(df):
    block = DataBlock(blocks=(TransformBlock,CategoryBlock), get_x=as_point, get_y=ColReader('label'), splitter=by_split)
    return Learner(block.dataloaders(df, bs=30, num_workers=0, device='cpu'), toy_model(), loss_func=CrossEntropyLossFlat())

# ---- another prevalence

def test_priors_by_a_slow_em():
    z,y = logits_and_targs(400, 4); p = z.double().softmax(1)
    trained = np.array([.1,.2,.3,.4])
    q = trained.copy()
    for _ in range(3000):
        post = np.zeros((400,4))
        for i in range(400):
            w = [p[i,k].item()*q[k]/trained[k] for k in range(4)] if _<3 else p[i].numpy()*q/trained
            post[i] = np.array(w)/sum(w)
        new = post.mean(0)
        if abs(new-q).max()<1e-12: break
        q = new
    same(estimate_priors(p, trained, tol=1e-12), q, atol=1e-8)
    same(adapt_priors(p, trained), post, atol=1e-6); same(adapt_priors(p, 10*trained, 7*q), post, atol=1e-6)

def test_priors_that_are_known_make_shifted_data_calibrated():
    g = torch.Generator().manual_seed(0)
    shares = torch.tensor([.05,.25,.7])
    y = torch.multinomial(shares, 20000, replacement=True, generator=g)
    x = F.one_hot(y, 3)+torch.randn(20000, 3, generator=g)
    p = x.double().softmax(1)                                  # the posterior under equal shares
    for q in (adapt_priors(p, [1,1,1], shares),adapt_priors(p, [1,1,1])):
        same(q.mean(0), shares.double(), atol=.02)
        for k in range(3):
            high = q[:,k]>q[:,k].quantile(.8)
            assert abs(q[high,k].mean()-(y[high]==k).double().mean())<.03
    for bad in ([1,1],[1,0,1],[1,1,float('nan')],[1,-1,1]):
        with pytest.raises(ValueError, match='3 shares or counts above 0'): adapt_priors(p, bad)
    with pytest.warns(UserWarning, match='still change'): estimate_priors(p, [1,1,1], max_iter=1)

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
    with pytest.warns(UserWarning, match='2 .0.') as said:     # a class without an image is no error
        assert calibrate(learn, kind='structured').model.is_scaled
    assert len(said)==1

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
    learn = toy_learner(loss_func=MSELossFlat()); before = weights(learn)
    with pytest.raises(ValueError, match='softmax'): learn.fit(1, cbs=Calibrate())
    with pytest.raises(TypeError, match='type set'): toy_learner(model=learn.model).fit(1, cbs=Calibrate(dl=DataLoader([({1,2},0)]*4, bs=2, num_workers=0)))
    assert torch.equal(weights(learn), before)
    learn = with_test()
    with pytest.raises(ValueError, match='two Calibrate'): learn.fit(1, cbs=[Calibrate(),Calibrate()])
    pixels = [TensorDataset(torch.randn(8, 1, 6, 6), torch.randint(0, 3, (8,6,6))) for _ in range(2)]
    dls = DataLoaders(*[DataLoader(o, bs=4, num_workers=0) for o in pixels], device='cpu')
    dense = Learner(dls, torch.nn.Conv2d(1, 3, 1), loss_func=CrossEntropyLossFlat(axis=1)); start = weights(dense)
    with pytest.raises(ValueError, match='pixels: fit_temperature'): dense.fit(1, cbs=Calibrate())
    assert torch.equal(weights(dense), start)
    with pytest.raises(ValueError, match='trained on'): learn.fit(1, cbs=Calibrate(dl=learn.dls.train))
    assert torch.equal(weights(learn), weights(with_test()))
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

def test_a_fit_that_goes_on_is_one_in_a_piece(tmp_path):
    whole = with_test(path=tmp_path, shuffle=False); whole.fit(3, cbs=Calibrate())
    part = with_test(path=tmp_path, shuffle=False); part.fit(2); part.save('two')
    part = with_test(path=tmp_path, shuffle=False); part.load('two')
    part.fit(3, start_epoch=2, cbs=Calibrate())
    same(part.model.T, whole.model.T); same(weights(part), weights(whole))
    part.fit(3, start_epoch=3, cbs=Calibrate())                # nothing is left to train
    same(part.model.T, whole.model.T); assert part.model.is_scaled

def test_a_compiled_network():
    plain,compiled = with_test(),with_test()
    compiled.model = torch.compile(compiled.model, backend='eager')
    for learn in (plain,compiled): learn.fit(2, .1, cbs=[OLSCallback(),Calibrate()])
    same(compiled.model.T, plain.model.T); same(probs(compiled, ds_idx=2), probs(plain, ds_idx=2))
    x = toy_data(5)[0]; same(fold_scaling(compiled)(x), fold_scaling(plain)(x))
    compiled.fit(1, .1, cbs=Calibrate()); assert compiled.model.is_scaled

def test_the_model_says_what_it_was_calibrated_with():
    learn = calibrate(fitted())
    assert f'T={learn.model.T:.4g}, fitted to 60 images' in repr(learn.model)
    assert 'structured scaling, fitted to 60 images' in repr(calibrate(learn, kind='structured').model)
    learn.model.set_scaling(); assert 'not calibrated' in repr(learn.model)

def test_refinement_while_training(tmp_path):
    learn = with_test(path=tmp_path, metrics=RefinementMetric())
    learn.fit(3, .1, cbs=[SaveModelCallback(monitor='refinement', comp=np.less),Calibrate()])
    z,y = uncalibrate(learn).get_preds(act=lambda x: x)
    best = min(o[-1] for o in learn.recorder.values)
    same(refinement(z, y, logits=True), best); assert learn.recorder.metric_names[-2]=='refinement'
    assert learn.metrics[0].__getstate__()['seen']==[]
    with pytest.raises(ValueError, match='one class per image'): toy_learner(loss_func=BCEWithLogitsLossFlat(), metrics=RefinementMetric(), data=(toy_data()[0],F.one_hot(toy_data()[1], K).float()), valid=(toy_data(60)[0],F.one_hot(toy_data(60)[1], K).float())).validate()

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

def test_mixup_and_calibrate_in_one_fit():
    learn = toy_learner()
    learn.fit(1, cbs=[MixUp(.4),Calibrate()])
    assert learn.model.is_scaled and isinstance(learn.loss_func, CrossEntropyLossFlat)

# ---- ensembles

def frame_learners(n, path):
    learners = []
    for seed in range(n):
        learn,df = frame_learner(path=path)
        learn.model = toy_model(seed=seed)
        with learn.no_bar(), learn.no_logging(): learn.fit(3, .1)
        learners.append(learn)
    return learners,df

def test_an_ensemble_is_calibrated_judged_and_exported_as_any_network(tmp_path):
    learners,df = frame_learners(3, tmp_path)
    with learners[0].no_bar():
        mean = torch.stack([probs(o) for o in learners]).mean(0)
        calibrate(learners[1])                                 # its scaling is left out
        both = ensemble_learner(learners)
    with both.no_bar():
        same(probs(both), mean)
        y = both.get_preds()[1]
        T = calibrate(both).model.T
        same(T, fit_temperature(mean, y)); same(probs(both), apply_temperature(mean, T))
        with pytest.raises(ValueError, match='60 of its 60'): check_not_calibrated_on(both, both.dls.valid)
        with pytest.raises(ValueError, match='calibrated this network'): CalibrationInterpretation.from_learner(both, ds_idx=1)
        with pytest.raises(ValueError, match='export learn.model instead'): fold_scaling(both)
        both.export('both.pkl')
        again = load_learner(tmp_path/'both.pkl')
        dl = again.dls.test_dl(df.iloc[90:], with_labels=True)
        same(probs(again, dl=dl), probs(both)); same(again.model.T, T)
        same(again.predict(df.iloc[95])[2], probs(both)[5])
        with pytest.raises(ValueError, match='60 of its 60'): check_not_calibrated_on(again, dl)
    assert isinstance(learners[1].model, CalibratedModel)

def test_an_ensemble_of_calibrated_ols_is_that_of_the_bare_networks():
    learners = [fitted(OLSCallback(), Calibrate(), model=toy_model(seed=o)) for o in range(2)]
    both = ensemble_learner(learners)
    same(probs(both, ds_idx=2), torch.stack([probs(uncalibrate(o), ds_idx=2) for o in learners]).mean(0))

def test_what_is_no_ensemble(tmp_path):
    a = fitted()
    with pytest.raises(ValueError, match='at least 2 networks, got 1'): ensemble_learner([a])
    other = toy_learner(data=toy_data(60, K, seed=1))          # trained on what the first validates on
    with pytest.raises(ValueError, match='trained on images of this loader'): ensemble_learner([a,other])
    assert len(ensemble_learner([a,other], with_test(valid=toy_data(60, K, seed=7)).dls).model.models)==2
    multi = toy_learner(loss_func=BCEWithLogitsLossFlat())
    with pytest.raises(ValueError, match='the loss is multi-label'): ensemble_learner([multi,multi])
    (learn,),df = frame_learners(1, tmp_path)
    renamed = frame_learner(path=tmp_path)[0]
    renamed.dls.vocab = [o.upper() for o in learn.dls.vocab]
    with pytest.raises(ValueError, match='other classes'): ensemble_learner([learn,renamed])
    with pytest.raises(ValueError, match=r'other numbers of classes: \[4, 6\]'): probs(ensemble_learner([a,toy_learner(model=toy_model(4))]))

# ---- other people's

@pytest.mark.parametrize('kind,name', [('structured','svs'),('matrix','sms')])
@pytest.mark.references
def test_structured_scaling_as_probmetrics_has_it(kind, name):
    "The same temperature first: theirs has no prior, and is searched to 1e-3"
    factory = importlib.import_module('probmetrics.calibrators.factory')
    z,y = logits_and_targs(600, 6, T=1.7, seed=3)
    z = z.double()+torch.linspace(-.8, .8, 6)                    # biased classes
    theirs = factory.get_calibrator(name).fit(z[:400].softmax(1).numpy(), y[:400].numpy()).predict_proba(z[400:].softmax(1).numpy())
    ours = scale_logits(z[400:], **fit_scaling(z[:400], y[:400], kind, prior=None)).softmax(1).numpy()
    assert abs(ours-theirs).max()<1e-3 and abs(ours-z[400:].softmax(1).numpy()).max()>.05

@pytest.mark.references
def test_the_prevalence_of_another_place_as_quapy_finds_it():
    quapy = importlib.import_module('quapy.method.aggregative')
    z,y = logits_and_targs(2000, 4, T=1., seed=5)
    p,trained = z.double().softmax(1),np.array([.4,.3,.2,.1])
    keep = np.flatnonzero((y!=0).numpy() | (np.arange(2000)%4==0))   # a quarter of the first class
    shares,adapted = quapy.EMQ.EM(trained, p[keep].numpy(), epsilon=1e-12)
    ours = estimate_priors(p[keep], trained, tol=1e-13)
    np.testing.assert_allclose(ours, shares, atol=1e-8)
    np.testing.assert_allclose(adapt_priors(p[keep], trained), adapted, atol=1e-6)
    assert abs(ours.numpy()-trained).max()>.05

# ---- what the callback says

@pytest.mark.parametrize('monitor,warned', [('ece',True),('debiased_ce',True),('confidence_gap',True),('accuracy',False),('refinement',False),('valid_loss',False)])
def test_a_watched_measure_that_the_scaling_changes_is_said(tmp_path, monitor, warned):
    from fastai.metrics import accuracy
    from ols_fastai.calibration.metrics import confidence_gap, ece
    from ols_fastai.calibration.resampling import debiased_ce
    learn = toy_learner(metrics=[accuracy,ece,debiased_ce,confidence_gap,RefinementMetric()], path=tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        learn.fit(1, cbs=[SaveModelCallback(monitor=monitor), Calibrate()])
    assert any(f'SaveModelCallback watches {monitor}' in str(o.message) for o in said)==warned

def test_the_end_of_a_fit_says_what_was_calibrated(capsys):
    from fastai.callback.progress import ProgressCallback
    learn = toy_learner()
    learn.fit(1, cbs=Calibrate())
    assert 'Calibrated' not in capsys.readouterr().out   # without a bar: silent
    learn.create_mbar = True
    learn.fit(1, cbs=[ProgressCallback(), Calibrate()])
    assert f'Calibrated after the last epoch: T={learn.model.T:.4g}, fitted to 60 images' in capsys.readouterr().out

def test_patients_of_the_training_among_those_of_the_calibration_are_said():
    "A loader split image by image: whoever calibrates, `calibrate` or the callback, is told"
    learn,df = frame_learner()
    block = DataBlock(blocks=(TransformBlock,CategoryBlock), get_x=as_point, get_y=ColReader('label'), splitter=by_split)
    def with_patients(who):
        return Learner(block.dataloaders(df.assign(patient=who), bs=30, num_workers=0, device='cpu'), toy_model(), loss_func=CrossEntropyLossFlat())
    mixed,apart = with_patients(np.arange(150)%70),with_patients(np.arange(150)//2)
    def quietly(f, learn):
        with learn.no_bar(), learn.no_logging(): return f()
    with pytest.warns(UserWarning, match='on images of 60 patients who are in its training too, such as'): quietly(lambda: calibrate(mixed), mixed)
    with pytest.warns(UserWarning, match='60 patients who are in its training'): quietly(lambda: mixed.fit(1, .01, cbs=Calibrate()), mixed)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*in its training too')
        quietly(lambda: calibrate(apart), apart); quietly(lambda: calibrate(learn), learn)

def test_training_images_are_judged_with_a_word(tmp_path):
    "The loader itself, and another one of the same rows; the page says it too"
    learn = fitted()
    with pytest.warns(UserWarning, match='was trained on .* of these'): CalibrationInterpretation.from_learner(learn, ds_idx=0)
    learn,df = frame_learner()
    rows = learn.dls.test_dl(df[df.split=='train'], with_labels=True)
    with learn.no_bar(), pytest.warns(UserWarning, match='was trained on 90 of these 90'): seen = CalibrationInterpretation.from_learner(learn, dl=rows)
    assert 'images that the network was trained on are among those that are judged' in calibration_report(seen, tmp_path/'r.html', n=3).read_text()
    with warnings.catch_warnings(), learn.no_bar():
        warnings.filterwarnings('error', message='.*was trained on')
        CalibrationInterpretation.from_learner(learn, dl=learn.dls.test_dl(df[df.split=='valid'], with_labels=True))

def test_a_loader_without_labels_is_named():
    learn,df = frame_learner()
    with learn.no_bar(), pytest.raises(ValueError, match='with_labels=True'): CalibrationInterpretation.from_learner(learn, dl=learn.dls.test_dl(df[:20]))

def test_the_shares_of_another_place_go_behind_the_network_and_into_the_file(tmp_path):
    learn,df = frame_learner(path=tmp_path)
    with learn.no_bar():
        calibrate(learn)
        before = probs(learn)
        trained,target = torch.arange(1., K+1),torch.arange(K, 0., -1)
        adapt_learner(learn, target, trained)
        same(probs(learn), adapt_priors(before, trained, target)); assert learn.model.kind=='temperature and shares'
        learn.export('a.pkl')
        new = load_learner(tmp_path/'a.pkl')
        same(new.get_preds(dl=new.dls.test_dl(df[90:]))[0], adapt_priors(before, trained, target))
        with pytest.raises(ValueError, match='give them, trained='): adapt_learner(new, target)
        with pytest.raises(ValueError, match='60 of its 60'): check_not_calibrated_on(learn, learn.dls.valid)
        calibrate(learn); same(probs(learn), before)            # a new calibration takes them away
        calibrate(learn, kind='entropy')
        with pytest.raises(ValueError, match='calibrate.learn. first'): adapt_learner(learn, target, trained)

def test_a_number_for_each_class_needs_images_of_each(recwarn):
    learn,df = frame_learner()
    some = df[(df['split']=='valid')&(df.label!='c2')]
    with learn.no_bar():
        calibrate(learn, dl=some)
        assert not [o for o in recwarn.list if 'fits a number' in str(o.message)]
        with pytest.warns(UserWarning, match=r'fits a number for each class, and of .*c2 .0.'): calibrate(learn, dl=some, kind='structured')

def test_what_a_network_was_trained_on_before_is_known_beside_its_new_loader():
    learn = calibrate(fitted())
    def loader(tensors): return learn.dls.valid.new(TensorDataset(*tensors))
    others = DataLoaders(loader(toy_data(30, K, seed=9)), learn.dls.valid)
    again = Learner(others, learn.model, loss_func=learn.loss_func)
    for tensors in (learn.dls.train.dataset.tensors,toy_data(30, K, seed=9)):
        same_rows,much = trained_on(again, loader(tensors))
        assert much and same_rows.all()
    assert not trained_on(again, loader(toy_data(30, K, seed=10)))[0].any()
