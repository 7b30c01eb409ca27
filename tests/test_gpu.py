"""What may differ on a GPU: devices, half precision, waiting, wrong labels, sums of very many pixels. No GPU: skipped.

OLS_TEST_DEVICE=cpu runs what a CPU can run of it."""
import os, traceback, warnings
import cv2, pandas as pd, pytest, torch
from fastai.callback.all import ChannelsLast, CutMix, GradientAccumulation, MixUp
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from fastai.callback.schedule import *
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import no_random
from conftest import K, toy_data, toy_learner, weights
from test_reference import reference
from ols_fastai.calibration.interpretation import CalibrationInterpretation
from ols_fastai.calibration.metrics import summary_metrics
from ols_fastai.calibration.scaling import Calibrate, uncalibrate
from ols_fastai.calibration.temperature import fit_temperature
from ols_fastai.data.loaders import image_dls
from ols_fastai.train.methods import METHODS
from ols_fastai.train.models import small_cnn
from ols_fastai.train.ols import OLSCallback
from ols_fastai.train.soft_labels import SoftLabels, soft_cross_entropy

device = torch.device(os.environ.get('OLS_TEST_DEVICE', 'cuda'))
on_gpu = device.type=='cuda'
pytestmark = pytest.mark.skipif(on_gpu and not torch.cuda.is_available(), reason='no GPU here')

def same(a, b, atol=1e-6): torch.testing.assert_close(a.cpu(), b.cpu(), atol=atol, rtol=0, check_dtype=False)

def pictures(n=240, seed=0):
    "Noisy images with a tint, which is the class"
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, K, (n,), generator=g)
    x = torch.randn(n, 3, 16, 16, generator=g)
    tint = torch.tensor([[1,0,0],[0,1,0],[0,0,1],[1,1,0],[0,1,1],[1,0,1]])
    return x+2*tint[y][:,:,None,None],y

def picture_learner(**kwargs):
    with no_random(0): net = small_cnn(K, 16)
    usual = dict(data=pictures(), valid=pictures(60, 1), model=net, lr=.1, bs=24, device=device)
    return toy_learner(**{**usual, **kwargs})

# ---- the same soft labels

def test_same_soft_labels_as_plain_torch_on_a_cpu():
    history,w = reference(.5, epochs=3)
    seen,cb = [],OLSCallback()
    class Watch(Callback):
        order = 99
        def after_epoch(self): seen.append(cb.S.clone())
    learn = toy_learner(shuffle=False, lr=.5, device=device)
    learn.fit(3, cbs=[cb,Watch()], wd=0.)
    assert all(o.device.type==device.type for o in (cb.S,cb.labels.total,*learn.model.parameters()))
    for ours,ref in zip(seen, history, strict=True): same(ours, ref, 1e-5)
    same(weights(learn), w, 1e-5)

class Emitted(Callback):
    "Sums in fp64 of what the network gave for the samples that teach, one by one; `lam` of mixed images"
    order,run_valid = 99,False
    def __init__(self, mix=None): self.mix = mix
    def before_train(self): self.A = torch.zeros(K, K, dtype=torch.float64)
    def before_backward(self):
        p = self.pred.detach().float().softmax(1).double().cpu()
        lam = torch.ones(len(p)) if self.mix is None else self.mix.lam.cpu().expand(len(p))
        for q,t,l in zip(p, self.y.cpu(), lam):
            if q.argmax()==t and l>=.9: self.A[t] += q

situations = {'fp32': lambda o: (o,[]), 'fp16': lambda o: (o.to_fp16(),[]), 'bf16': lambda o: (o.to_bf16(),[]),
              'channels last, fp16': lambda o: (o.to_fp16(),[ChannelsLast()]),
              'accumulation': lambda o: (o,[GradientAccumulation(48)]),
              'MixUp, bf16': lambda o: (o.to_bf16(),[MixUp(.4)]), 'CutMix': lambda o: (o,[CutMix(1.)])}

@pytest.mark.parametrize('name', situations)
def test_soft_labels_are_the_means_of_what_the_network_gave(name):
    learn,cbs = situations[name](picture_learner())
    emitted,cb = Emitted(next((o for o in cbs if isinstance(o, MixHandler)), None)),OLSCallback()
    learn.fit_one_cycle(3, .1, cbs=[cb,emitted,*cbs])
    n = emitted.A.sum(1, keepdim=True)
    assert (n>0).sum()>=4, 'a network that learnt nothing shows nothing'
    taught = n[:,0]>0
    same(cb.S[taught], (emitted.A/n)[taught], 1e-5)
    assert cb.S.dtype==torch.float32 and cb.labels.total.dtype==torch.float64 and cb.S.device.type==device.type

@pytest.mark.skipif(not on_gpu, reason='a minute on a CPU')
def test_compiled_network():
    learn,emitted,cb = picture_learner(),Emitted(),OLSCallback()
    learn.model = torch.compile(learn.model.to(device))
    learn.fit_one_cycle(3, .1, cbs=[cb,emitted])
    n = emitted.A.sum(1, keepdim=True)
    same(cb.S[n[:,0]>0], (emitted.A/n)[n[:,0]>0], 1e-5)

@pytest.mark.parametrize('name', METHODS)
def test_every_method_trains(name):
    m = METHODS[name]
    base = picture_learner()
    if m.needs_baseline: base.fit_one_cycle(2, .1)
    loss,cb = m.make(**({'baseline': base} if m.needs_baseline else {}))
    learn = picture_learner(loss_func=loss or CrossEntropyLossFlat())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit_one_cycle(4, .1, cbs=cb)
    preds,targs = learn.get_preds()
    assert (preds.argmax(1)==targs).float().mean()>.25  # a sixth by chance

def test_sums_of_a_hundred_million_pixels():
    n = 10**8 if on_gpu else 10**5
    g = torch.Generator(device).manual_seed(0)
    z = torch.randn(n, 3, generator=g, device=device)
    y = torch.randint(0, 3, (n,), generator=g, device=device)
    sl = SoftLabels(3, correct_only=False).to(device)
    p = z.softmax(1)
    for a,b in zip(p.split(n//4), y.split(n//4)): sl.accumulate(a, b)
    for k in range(3):
        torch.testing.assert_close(sl.total[k].cpu(), p[y==k].double().sum(0).cpu(), rtol=1e-10, atol=0)
    assert sl.count.sum()==n
    sl.update()
    same(sl.S.sum(1), torch.ones(3))

def test_deterministic_algorithms_give_the_same_bits_twice():
    def run():
        g = torch.Generator(device).manual_seed(0)
        sl = SoftLabels(K).to(device)
        z = torch.randn(5000, K, generator=g, device=device, requires_grad=True)
        y = z.argmax(1).detach()
        soft_cross_entropy(z, sl.rows(y)).backward()
        sl.accumulate(z.detach().softmax(1), y)
        sl.update()
        return sl.S,z.grad
    torch.use_deterministic_algorithms(True)
    try: first,second = run(),run()
    finally: torch.use_deterministic_algorithms(False)
    for a,b in zip(first, second): assert torch.equal(a, b)

# ---- nothing waits

@pytest.mark.skipif(not on_gpu, reason='a CPU does not wait')
@pytest.mark.parametrize('cb', [OLSCallback, lambda: METHODS['tfkd_reg'].make()[1]], ids=['OLS','Tf-KD'])
def test_no_batch_waits_for_the_gpu(cb):
    "Batches 3 to 22 of an epoch: fastai's own recorder waits in each, which shows that waiting is seen"
    places = []
    class Mode(Callback):
        order,run_valid = -100,False
        def before_batch(self):
            if self.iter==2: torch.cuda.set_sync_debug_mode('warn')
        def after_train(self): torch.cuda.set_sync_debug_mode('default')
    learn = picture_learner(data=pictures(24*22))
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = lambda *args, **kwargs: places.append([o.filename for o in traceback.extract_stack()])
        try: learn.fit(2, cbs=[cb(),Mode()])
        finally: torch.cuda.set_sync_debug_mode('default')
    assert len(places)>=20, 'waiting is not seen'
    ours = [o for o in places if any('ols_fastai' in f and 'tests' not in f for f in o)]
    assert not ours, ours[0]

# ---- measures, scaling, files

def test_measures_and_scaling_of_tensors_on_the_gpu():
    g = torch.Generator().manual_seed(0)
    z,y = 2*torch.randn(500, K, generator=g),torch.randint(0, K, (500,), generator=g)
    z[torch.arange(500),y] += 2
    p = z.softmax(1)
    there = summary_metrics(p.to(device), y.to(device))
    for k,v in summary_metrics(p, y).items(): assert abs(there[k]-v)<1e-6, k
    assert abs(fit_temperature(z.to(device), y.to(device), logits=True)-fit_temperature(z, y, logits=True))<1e-5

@pytest.fixture
def files(tmp_path):
    x,y = pictures(120)
    pixels = (40*x+100).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    df = pd.DataFrame(dict(label=[f'class {o}' for o in y.tolist()]))
    df['filename'] = [f'{i}.png' for i in df.index]
    df['split'] = [('valid','train','test')[i%3] for i in df.index]
    for fn,o in zip(df.filename, pixels): cv2.imwrite(str(tmp_path/fn), o)
    return tmp_path,df

def file_dls(files, device):
    root,df = files
    return image_dls(df, root=root, size=16, bs=20, num_workers=2, device=device)

def test_batches_are_those_of_a_cpu(files):
    (x,y),(x0,y0) = (file_dls(files, o).valid.one_batch() for o in (device,'cpu'))
    assert x.device.type==y.device.type==device.type and x.dtype==torch.float32
    same(x, x0, 1e-6), same(y, y0)

def test_calibrated_at_the_end_of_fit_exported_and_loaded_on_a_cpu(files):
    path,cb = files[0],OLSCallback(checkpoint=files[0]/'ols.safetensors')
    with no_random(0): learn = Learner(file_dls(files, device), small_cnn(K, 16), path=path)
    learn.fit_one_cycle(4, 1e-2, cbs=[cb,Calibrate()])
    preds,targs = learn.get_preds(ds_idx=2)
    assert learn.model.T!=1 and {o.device.type for o in learn.model.parameters()}=={device.type}
    learn.export('learner.pkl')
    loaded = load_learner(path/'learner.pkl')
    same(loaded.get_preds(dl=file_dls(files, 'cpu')[2])[0], preds, 1e-4)
    same(loaded.predict(path/'2.png')[2], preds[0], 1e-4)
    same(CalibrationInterpretation.from_learner(learn, ds_idx=2).preds, preds, 1e-5)
    again = OLSCallback.load(path/'ols.safetensors')
    same(again.S, cb.S)
    uncalibrate(learn).fit(1, cbs=again)
    assert again.n_trained==5 and again.S.device.type==device.type

# ---- a wrong label: last, since a kernel that fails ends all work of the process on the GPU

@pytest.mark.parametrize('cbs', [(), (MixUp,)], ids=['plain','MixUp'])
@pytest.mark.parametrize('label', [-1, K, 200])
def test_a_wrong_label_is_named_and_the_gpu_lives(label, cbs):
    x,y = toy_data()
    y[100] = label
    cb = OLSCallback()
    with pytest.raises(IndexError, match=rf'labels \[{label}\] are outside 0..{K-1}'):
        toy_learner(data=(x,y), device=device).fit(1, cbs=[cb, *(o() for o in cbs)])
    assert torch.ones(3, device=device).sum().item()==3 and cb.n_trained==0
