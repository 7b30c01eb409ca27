"""The few questions that users have, decided: OLS and a temperature against hard labels and a temperature.

    OMP_NUM_THREADS=1 python benchmarks/evidence.py pilot ../shared/data/mednist    # length and settings, no test image
    OMP_NUM_THREADS=1 python benchmarks/evidence.py run ../shared/data/mednist      # goes on where it was stopped
    OMP_NUM_THREADS=1 python benchmarks/evidence.py run ../shared/data/mednist 0 2  # the first of two processes
    OMP_NUM_THREADS=1 python benchmarks/evidence.py table ../shared/data/mednist    # evidence*.csv, of what is there

THE PROTOCOL, written down before `run`. Until then the test images were not looked at: the code was tried for two
epochs on another draw of them.

Primary: one family of 8 comparisons, Holm, two-sided paired t-tests over runs at 5 %. Negative log-likelihood (NLL) and
|mean confidence - accuracy| on the test images, of learners as exported, loaded from their file. On BrainRegions and
on MedNIST, trained on right labels:
  (1) OLS and a temperature of 20 validation images a class, against hard labels and a temperature of the same images;
  (2) OLS scaled without a held-out set (`cross_calibrate`, 5 folds), against the same hard labels and temperature.
Every temperature has the package's prior. A run has its own sample of training and validation images and its own first
weights and order. 20 runs of BrainRegions, 70 of MedNIST; a table of fewer says how many it has.

Secondary: differences with intervals, without tests or stars. The methods of `secondary`; Top-1 and Top-5 error, AURC,
debiased calibration error, macro AUROC; temperatures of 0, 2, 5 and 20 validation images a class; 20 % wrong labels in
training, random ones and (BrainRegions) names of regions that touch; the other brain; the length of the training.

Intervals are of two kinds: t over runs, which hold the test images fixed; and a bootstrap that draws runs and test
images (BrainRegions: whole classes, since images of a region are cut from one place; MedNIST: images within classes).
Samples and first weights are crossed in a grid of their own, so that what each adds to the variance can be told.

Networks that learn: `pilot` trains hard labels for 5 to 80 epochs on samples that no run uses, and judges them on
validation images. `epochs` is the shortest training that is over-confident and whose accuracy is within 2 points of the
best of all lengths: 20 for BrainRegions. MedNIST's hard labels were over-confident after no length; 40 is the shortest
within 5 points of their accuracy in confidence. Settings are tuned on such samples too, by the refinement (cross-fitted
NLL after a temperature), one setting for a data set; where it is an edge of the grid, the table says so.

BrainRegions is cut anew here: training images from the left hemisphere of one template, validation and test images
from slabs of the right one, and the same test windows once more from another template, a second site. Two average
brains are no patients. MedNIST's test images are from its training list, without copies, and none of them was a test
image of an earlier script. Predictions stay in benchmarks/runs/ (not committed)."""
import itertools, os, sys, tempfile, time, warnings
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
import cv2, numpy as np, pandas as pd, torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch.utils.data import TensorDataset
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.schedule import *
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import default_device, no_random
from fastcore.foundation import L
from filelock import FileLock
from common import runs, wrong_labels, wrong_neighbours, write_table
from exported import NoValidation, exported
from ols_fastai.core import load_tensors, quiet_learner, save_tensors, write_csv
from ols_fastai.data.datasets import _scaled_templates, cut_window, region_voxels, split_voxels
from ols_fastai.data.loaders import image_dls
from ols_fastai.data.splits import sample_per_class
from ols_fastai.train.methods import METHODS, FixedTargets, parse_method
from ols_fastai.train.models import small_cnn
from ols_fastai.train.ols import OLSCallback
from ols_fastai.calibration.curves import aurc
from ols_fastai.calibration.metrics import confidence_gap, summary_metrics
from ols_fastai.calibration.chance import holm
from ols_fastai.calibration.resampling import debiased_ce
from ols_fastai.calibration.scaling import calibrate, cross_calibrate
from ols_fastai.calibration.temperature import apply_temperature, cross_folds, fit_temperature, refinement

folder = runs/'evidence'
width,size = 16,24  # of the network (`small_cnn`), and of the images in pixels
settings = {'BrainRegions': dict(n_train=20, epochs=20, bs=32, lr=3e-3, runs=20, grid=4, few=5),
            'MedNIST': dict(n_train=10, epochs=40, bs=20, lr=3e-3, runs=70, grid=6, few=20)}
held_out = (2,5,20)  # validation images a class
lengths = (5,10,20,40,80)
share = .2  # of the training labels that are wrong, where some are
pilots = {'BrainRegions': range(1000,1001), 'MedNIST': range(1000,1006)}  # samples that no run uses
tuned = {'LS tuned': [f'ls:eps={o}' for o in (.01,.03,.1,.2,.4)],
         'OLS tuned': [f'ols:alpha={o}' for o in (.1,.3,.5,.7,.9)],
         'Tf-KD tuned': [f'tfkd_reg:a={o}' for o in (.03,.1,.2,.4,.8)]}
plain = {'hard':'hard', 'LS':'ls:eps=0.1', 'OLS':'ols:alpha=0.5'}
primary = ('hard','OLS','OLS, folds')
uniform_first,on_valid = 'one uniform epoch, then hard','hard, on validation images too'
secondary = ('LS', uniform_first, on_valid, 'two-stage OLS', *tuned)
more_methods = ('tfkd_self','cpls','ls_plus','focal','flsd53','dual_focal','mdca','mbls','maxsup','mixup')
ideas = ("OLS's diagonal, uniform rest", 'OLS, a fold left out in each epoch')

# ---- images, once in memory

class Images(NamedTuple):
    "Grey images as bytes, and a table of them: `label`, `part`, and `row`, the place in `x`"
    x:torch.Tensor
    df:pd.DataFrame

    def of(self, part): return self.df[self.df.part==part]
    def pixels(self, df): return (self.x[df.row.to_numpy()].float()/127.5-1)[:,None]
    def targs(self, df): return torch.as_tensor(np.searchsorted(self.classes, df.label.to_numpy()))
    @property
    def classes(self): return np.array(sorted(self.df.label.unique()))

def shrink(a): return cv2.resize(np.asarray(a, dtype=np.float32), (size,size), interpolation=cv2.INTER_AREA).round()

def cut_brains():
    "Windows of one template; those of the test once more from the other, `site`"
    n = dict(train=200, valid=60, test=40)  # of each region
    rng,rows = np.random.default_rng(44),[]
    vols = _scaled_templates()
    for region,sides in region_voxels().items():
        for part,voxels in split_voxels(*sides).items():
            centres = voxels[rng.choice(len(voxels), n[part], replace=n[part]>len(voxels))]
            for c in centres+rng.uniform(-1, 1, (n[part],3)):
                rows.append((region, part, shrink(cut_window(*vols[0], c))))
                if part=='test': rows.append((region, 'site', shrink(cut_window(*vols[1], c))))
    return rows

def read_mednist(root):
    "Its training list without copies, 200 a class of it to test on; validation images are those of its own list"
    root = Path(root).resolve()
    pool,valid = (pd.read_csv(root/f'mednist_{o}.csv') for o in ('train','val'))
    pool = pool.drop(sample_per_class(pool, 200, 17).index)  # exported.py's test images
    lists = pd.concat([pool.assign(part='train'), valid.assign(part='valid')], ignore_index=True)
    pixels = [cv2.imread(str(root.parent/o), cv2.IMREAD_GRAYSCALE) for o in lists.filename]
    lists['bytes'] = [o.tobytes() for o in pixels]
    lists = lists[~lists.bytes.duplicated()]
    lists.loc[sample_per_class(lists[lists.part=='train'], 200, 19).index,'part'] = 'test'
    return [(o.label, o.part, shrink(pixels[i])) for i,o in zip(lists.index, lists.itertuples())]

@cache
def images(data, mednist):
    "Read or cut once, and kept"
    fn = folder/f'images-{data}-{size}.safetensors'
    if not fn.exists():
        label,part,x = zip(*(cut_brains() if data=='BrainRegions' else read_mednist(mednist)))
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(fn, dict(x=torch.from_numpy(np.stack(x).astype(np.uint8))), dict(label=label, part=part))
    tensors,info = load_tensors(fn)
    df = pd.DataFrame(dict(label=info['label'], part=info['part']))
    return Images(tensors['x'], df.assign(row=range(len(df))))

# ---- a run

class Run(NamedTuple):
    data:str
    labels:str  # 'right', 'random', 'neighbours'
    epochs:int
    sample:int
    init:int
    method:str

    @property
    def fn(self):
        name = self.method.replace(' ', '_').replace(',', '').replace("'", '').replace(':', '_')
        return folder/self.data/f'{self.labels}-{self.epochs}'/f'{self.sample}-{self.init}-{name}.safetensors'
    def other(self, method): return self._replace(method=method)

def drawn(run, im):
    "Tables of the training images, with their labels, and of the validation images of a run"
    n = dict(train=settings[run.data]['n_train'], valid=20)
    train,valid = (sample_per_class(im.of(k), v, run.sample) for k,v in n.items())
    if run.labels=='random': train = wrong_labels(train, share, run.sample)
    if run.labels=='neighbours': train = wrong_neighbours(train, share, run.sample)
    return train,valid

def batches(im, df, bs=512, **kwargs):
    return DataLoader(TensorDataset(im.pixels(df), im.targs(df)), bs=bs, num_workers=0, **kwargs)

def trained(run, im, train, valid, cb=None, *cbs, loss=None):
    "A learner after its training"
    s = settings[run.data]
    both = batches(im, train, s['bs'], shuffle=True, drop_last=True),batches(im, valid)
    dls = DataLoaders(*both, device=default_device())
    dls.vocab = list(im.classes)
    with no_random(run.init):
        net = small_cnn(len(dls.vocab), width, channels=1).to(memory_format=torch.channels_last)
        learn = Learner(dls, net, loss_func=loss or CrossEntropyLossFlat(), cbs=ChannelsLast())
        unseen = [] if run.method=='cpls' else [NoValidation()]  # which learns from the validation images
        with quiet_learner(learn): learn.fit_one_cycle(run.epochs, s['lr'], cbs=[*unseen, *L(cb), *cbs])
    return learn

def logits(net, im, df):
    net.eval()
    at = next(net.parameters()).device
    with torch.no_grad(): return torch.cat([net(o.to(at)) for o in im.pixels(df).split(512)]).float().cpu()

def predicted(learn, im, valid):
    "Logits of validation and test images"
    parts = dict(valid=valid, **{o: im.of(o) for o in ('test','site') if len(im.of(o))})
    return {k: logits(learn.model, im, df) for k,df in parts.items()}

def as_exported(learn, im):
    "Probabilities of the test images, of the learner's exported file. Its own loaders are left at home"
    df = pd.DataFrame(dict(label=np.repeat(im.classes, 2), split=['train','valid']*len(im.classes)))
    df['filename'] = [f'{o}.png' for o in df.index]
    with tempfile.TemporaryDirectory() as tmp:
        for o in df.filename: cv2.imwrite(f'{tmp}/{o}', np.zeros((size,size), np.uint8))
        learn.dls = image_dls(df, root=tmp, size=size, bs=2, num_workers=0, check_files=False)
        return exported(learn, batches(im, im.of('test')))

# ---- ways to train

class UniformFirst(OLSCallback):
    "Uniform soft labels in the first epoch, hard labels after it"
    def shares(self): return super().shares() if self.n_trained<1 else (1.,0.)

class OwnDiagonal(OLSCallback):
    "The diagonal that OLS learns; what is left is spread evenly"
    def renew(self):
        super().renew()
        S = self.labels.S
        rest = (1-S.diagonal())/(len(S)-1)
        S.copy_(rest[:,None].expand_as(S).clone().fill_diagonal_(0.)+torch.diag(S.diagonal()))

class TrainingPredictions(Callback):
    "The predictions of the last epoch's batches, made as they are trained on"
    run_valid = False
    def before_epoch(self): self.seen = []
    def after_pred(self):
        if self.training: self.seen.append((self.pred.detach(), self.y))
    def temperature(self): return fit_temperature(*(torch.cat(o) for o in zip(*self.seen)), logits=True)

class RotatingFolds(Callback):
    "Each epoch leaves a fold out, and predicts it: each image was trained on in other epochs"
    n = 5
    def before_fit(self):
        self.x,self.targs = self.dls.train.dataset.tensors
        self.folds,self.seen = cross_folds(self.targs, n_folds=self.n),{}
    def before_epoch(self):
        self.out = torch.from_numpy(self.folds==self.epoch%self.n)
        kept = TensorDataset(self.x[~self.out], self.targs[~self.out])
        self.dls.loaders[0] = DataLoader(kept, bs=self.dls.train.bs, shuffle=True, drop_last=True, num_workers=0)
    def after_train(self):
        self.model.eval()
        with torch.no_grad(): z = torch.cat([self.model(o) for o in self.x[self.out].split(256)])
        self.seen[self.epoch%self.n] = z,self.targs[self.out]
    def temperature(self): return fit_temperature(*(torch.cat(o) for o in zip(*self.seen.values())), logits=True)

def setting(run):
    "What a method's name stands for: itself, a default, or what was chosen on the pilot samples"
    if run.method in plain: return plain[run.method]
    if run.method in more_methods: return run.method
    return chosen(run.data)[run.method] if run.method in tuned else None

def made(run, im):
    "Loss and callback of a method, as `compare` makes them"
    name,given = parse_method(setting(run))
    if METHODS[name].needs_baseline: given['baseline'] = kept_learner(run.other('hard'), im)
    return METHODS[name].make(**given)

def weights(net): return {f'net.{k}': v.float().cpu() for k,v in net.state_dict().items()}

def kept_learner(run, im):
    "A learner with the weights of a run"
    train,valid = drawn(run, im)
    kept,_ = load_tensors(run.fn)
    net = small_cnn(len(im.classes), width, channels=1)
    net.load_state_dict({k[4:]: v for k,v in kept.items() if k.startswith('net.')})
    dls = DataLoaders(batches(im, train), batches(im, valid), device=default_device())
    learn = Learner(dls, net.to(default_device()), loss_func=CrossEntropyLossFlat())
    learn.dls.vocab = list(im.classes)
    return learn

def plain_run(run, im):
    "A method of the package. The primary family is exported with the temperature of 20 images a class"
    train,valid = drawn(run, im)
    loss,cb = made(run, im)
    online = TrainingPredictions()
    learn = trained(run, im, train, valid, cb, online, loss=loss)
    out = predicted(learn, im, valid)
    if run.method=='OLS': out.update(S=cb.S.cpu().clone().float(), T_training=torch.tensor(online.temperature()))
    if run.method in primary:
        out.update(weights(learn.model))
        calibrate(learn, dl=batches(im, valid))
        out.update(exported=as_exported(learn, im), T_exported=torch.tensor(learn.model.T))
    return out

def folds_run(run, im):
    "OLS that was trained already, and five more networks that are trained without a fifth of the images each"
    train,valid = drawn(run, im)
    learn = kept_learner(run.other('OLS'), im)
    def fit(df): return trained(run, im, df[df.split=='train'], df[df.split=='valid'], OLSCallback())
    found = cross_calibrate(learn, train.assign(split='train'), fit, seed=run.sample)
    out = dict(exported=as_exported(learn, im), T=torch.tensor(found.T), rho=torch.tensor(found.rho))
    each = [predicted(o, im, valid) for o in found.learners]
    means = {k: torch.stack([o[k].softmax(1) for o in each]).mean(0).log() for k in each[0]}
    return dict(out, out_of_fold=found.logits.float(), fold_targs=found.targs, **means)

def idea_run(run, im):
    train,valid = drawn(run, im)
    if run.method==uniform_first: return predicted(trained(run, im, train, valid, UniformFirst()), im, valid)
    if run.method==ideas[0]: return predicted(trained(run, im, train, valid, OwnDiagonal()), im, valid)
    if run.method=='two-stage OLS':
        S = load_tensors(run.other('OLS').fn)[0]['S']
        return predicted(trained(run, im, train, valid, FixedTargets(lambda K: S, alpha=.5)), im, valid)
    if run.method==on_valid:
        kept = sample_per_class(valid, 2, run.sample)
        more = pd.concat([train, valid.drop(kept.index)])
        return predicted(trained(run, im, more, kept), im, valid)
    rotating = RotatingFolds()
    learn = trained(run, im, train, valid, OLSCallback(), rotating)
    return dict(predicted(learn, im, valid), T_rotating=torch.tensor(rotating.temperature()))

def do(run, im):
    "Train, and keep predictions; nothing is judged here"
    start,load = time.time(),os.getloadavg()[0]
    made_by = folds_run if run.method=='OLS, folds' else idea_run if setting(run) is None else plain_run
    tensors = made_by(run, im)
    info = dict(run._asdict(), spec=setting(run) or '', seconds=round(time.time()-start, 2), load=round(load, 1))
    run.fn.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(run.fn, {k: v.contiguous() for k,v in tensors.items()}, info)
    return info

# ---- what is run, in this order

def main_runs(methods, first, last):
    for i in range(first, last):
        for data,s in settings.items():
            n = s['runs']/20  # BrainRegions' 20 runs beside MedNIST's 70
            for j in range(round(i*n), round((i+1)*n)):
                yield from (Run(data, 'right', s['epochs'], j, j, o) for o in methods)

right = dict(BrainRegions=['right'], MedNIST=['right'])

def few_runs(methods, first, last, labels=right):
    "Part by part, so that what is there at any time is a smaller study of everything"
    for part,(data,s) in itertools.product(range(first, last), reversed(settings.items())):
        some = range(part*s['few']//5, (part+1)*s['few']//5)
        for i,kind in itertools.product(some, labels[data]):
            yield from (Run(data, kind, s['epochs'], i, i, o) for o in methods)

def length_runs(data, n):
    for i,epochs,o in itertools.product(range(n), lengths, plain): yield Run(data, 'right', epochs, i, i, o)

def grid_runs(data):
    s = settings[data]
    for i,j in itertools.product(range(s['grid']), repeat=2):
        yield from (Run(data, 'right', s['epochs'], i, j, o) for o in ('hard','OLS'))

noise = dict(BrainRegions=['random','neighbours'], MedNIST=['random'])

def all_runs():
    "Each once"
    noisy = ('hard','LS','OLS','OLS, folds',on_valid)
    untuned = [o for o in secondary if o not in tuned]
    parts = [main_runs(primary, 0, 5), length_runs('MedNIST', 10), length_runs('BrainRegions', 1),
             main_runs(primary, 5, 8), main_runs(untuned, 0, 3), few_runs(ideas, 0, 1),
             few_runs(noisy, 0, 2, dict(noise, BrainRegions=[])), main_runs(primary, 8, 10), main_runs(untuned, 3, 5),
             main_runs(primary, 10, 20), length_runs('BrainRegions', 3), grid_runs('MedNIST'),
             main_runs(secondary, 0, 5), few_runs(noisy, 0, 5, noise), few_runs(ideas, 1, 5),
             grid_runs('BrainRegions'), few_runs(more_methods, 0, 5), main_runs(secondary, 5, 20)]
    return list(dict.fromkeys(itertools.chain(*parts)))

# ---- pilot: the length of the training, and tuned settings, on validation images alone

def pilot_runs(data):
    "Lengths of hard labels, then settings"
    for sample in pilots[data]:
        for epochs in lengths: yield Run(data, 'right', epochs, sample, sample, 'hard')
    for sample in pilots[data][:3]:
        for o in sum(tuned.values(), []): yield Run(data, 'right', settings[data]['epochs'], sample, sample, o)

def pilot_row(run, im):
    train,valid = drawn(run, im)
    name,given = parse_method(run.method)
    loss,cb = METHODS[name].make(**given)
    z,y = logits(trained(run, im, train, valid, cb, loss=loss).model, im, valid),im.targs(valid)
    accuracy = 100*(z.argmax(1)==y).double().mean().item()
    return {**dict(data=run.data, spec=run.method, epochs=run.epochs, sample=run.sample), 'accuracy %': accuracy,
            'gap': 100*confidence_gap(z.softmax(1), y), 'refinement': refinement(z, y, logits=True)}

def pilot(mednist, which='all'):
    "All, or 'lengths' alone"
    warnings.filterwarnings('ignore')
    for run in itertools.chain(*map(pilot_runs, settings)):
        fn = run.fn.with_suffix('.pilot.csv')
        if fn.exists() or (which=='lengths' and run.method!='hard'): continue
        row = pilot_row(run, images(run.data, mednist))
        fn.parent.mkdir(parents=True, exist_ok=True)
        write_csv(pd.DataFrame([row]), fn)
        print(row, flush=True)
    found = [run.fn.with_suffix('.pilot.csv') for run in itertools.chain(*map(pilot_runs, settings))]
    write_table(pd.concat([pd.read_csv(o) for o in found if o.exists()]).round(6), 'evidence_pilot.csv')

@cache
def chosen(data):
    "Method -> the setting with the least refinement on the pilot samples"
    df = pd.read_csv(Path(__file__).parent/'evidence_pilot.csv').query('data==@data')
    mean = df[df.epochs==settings[data]['epochs']].groupby('spec').refinement.mean()
    return {k: mean[grid].idxmin() for k,grid in tuned.items()}

def do_once(run, mednist):
    "Another process may have the same run to do: OLS's, which others go on from"
    run.fn.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(run.fn.with_suffix('.lock')):
        if not run.fn.exists(): print(do(run, images(run.data, mednist)), flush=True)

def run_all(mednist, i=0, n=1):
    warnings.filterwarnings('ignore')
    for run in all_runs()[int(i)::int(n)]:
        if run.method in ('OLS, folds','two-stage OLS'): do_once(run.other('OLS'), mednist)
        do_once(run, mednist)

# ---- what a run says

def em(p, T, n):
    "The posterior of which `p` is the mixture by the targets T, by n steps of expectation maximisation"
    pi = p
    for _ in range(n):
        pi = pi*((p/(pi@T).clamp(min=1e-30))@T.T)
        pi = pi/pi.sum(1, keepdim=True)
    return pi

def inverse(p, T):
    "The same by the inverse; what is below 1e-4 is raised to it"
    pi = (p@torch.linalg.inv(T)).clamp(min=1e-4)
    return pi/pi.sum(1, keepdim=True)

def temperatures(run, t, im):
    "Each way to calibrate: none, few or 20 validation images a class, or a way of the method's own"
    _,valid = drawn(run, im)
    yield 'none',1.
    for n in held_out:
        if run.method==on_valid and n!=2: continue  # the others are in its training
        some = sample_per_class(valid, n, run.sample)
        z = t['valid'][valid.row.isin(some.row).to_numpy()]
        yield str(n),fit_temperature(z, im.targs(some), logits=True)
    for k in ('training','rotating'):
        if f'T_{k}' in t: yield k,t[f'T_{k}'].item()

def predictions_of(run, im, parts=('test','site')):
    "Part of the images, method, way to calibrate, temperature and probabilities"
    t,_ = load_tensors(run.fn)
    name = 'OLS, mean of 5 folds' if run.method=='OLS, folds' else run.method
    for part in (o for o in parts if o in t):
        for how,T in temperatures(run, t, im): yield part,name,how,T,(t[part].double()/T).softmax(1)
        if run.method!='OLS, folds': continue
        z,T = load_tensors(run.other('OLS').fn)[0][part],t['T'].item()
        yield part,'OLS','folds',T,(z.double()/T).softmax(1)
    if run.method!='OLS' or run.labels!='right': return
    yield from taken_out(run, t, im)

def taken_out(run, t, im):
    "OLS's predictions without what its targets have mixed into them"
    T = .5*(torch.eye(len(t['S']), dtype=torch.float64)+t['S'].double())
    test,valid = (t[o].double().softmax(1) for o in ('test','valid'))
    targs = im.targs(drawn(run, im)[1])
    for name,f in dict(EM=partial(em, n=5), inverse=inverse).items():
        fitted = fit_temperature(f(valid, T), targs)
        for how,value in (('none',1.),('20',fitted)):
            yield 'test',f'OLS, targets taken out: {name}',how,value,apply_temperature(f(test, T), value)

def measured(preds, targs):
    auroc = roc_auc_score(targs, preds, multi_class='ovr')
    more = {'debiased CE': debiased_ce(preds, targs), 'gap': 100*confidence_gap(preds, targs),
            'AURC': aurc(preds, targs), 'macro AUROC': auroc}
    return dict(**summary_metrics(preds, targs), **more)

def probabilities(run, im, part, key):
    "Of a method and a way to calibrate"
    return next(p for _,name,how,_,p in predictions_of(run, im, (part,)) if (name,how)==key)

def check_exported(run, t, im):
    "What the exported file predicts is what is judged here"
    if 'exported' not in t: return
    how = 'folds' if run.method=='OLS, folds' else '20'
    name = 'OLS' if how=='folds' else run.method
    want = probabilities(run, im, 'test', (name,how))
    off = (want-t['exported'].double()).abs().max().item()
    assert off<1e-4, f'{run.fn}: the exported file is off by {off:.1g}'

def rows_of(run, im):
    t,info = load_tensors(run.fn)
    check_exported(run, t, im)
    for part,name,how,T,preds in predictions_of(run, im):
        about = dict(run._asdict(), method=name, spec=info['spec'], calibrated=how, images=part, T=T)
        rho = t['rho'].item() if how=='folds' else np.nan
        took = dict(seconds=info['seconds'], load=info['load'])
        yield dict(**about, rho=rho, **measured(preds, im.targs(im.of(part))), **took)

def judged(run, mednist):
    "Rows of a run, kept beside it"
    fn = run.fn.with_suffix('.csv')
    if not fn.exists(): write_csv(pd.DataFrame(rows_of(run, images(run.data, mednist))), fn)
    return pd.read_csv(fn, dtype=dict(calibrated=str))

# ---- ensembles of the grid

def ensemble_rows(mednist):
    "The mean of the probabilities of networks that were trained on the same images from other weights"
    for data,s in settings.items():
        for i,method in itertools.product(range(s['grid']), ('hard','OLS')):
            each = [Run(data, 'right', s['epochs'], i, j, method) for j in range(s['grid'])]
            if not all(o.fn.exists() for o in each): continue
            im = images(data, mednist)
            loaded = [load_tensors(o.fn)[0] for o in each]
            mean = {k: torch.stack([o[k].double().softmax(1) for o in loaded]).mean(0) for k in ('valid','test')}
            T = fit_temperature(mean['valid'], im.targs(drawn(each[0], im)[1]))
            for how,value in (('none',1.),('20',T)):
                about = dict(each[0]._asdict(), init=-1, method=f'{method}, ensemble', spec=f"{s['grid']} networks")
                preds = apply_temperature(mean['test'], value)
                yield dict(about, calibrated=how, images='test', T=value, **measured(preds, im.targs(im.of('test'))))

# ---- comparisons

measures = ['NLL','|gap|','Top-1 error %','Top-5 error %','AURC','debiased CE','macro AUROC']
hard = ('hard','20')
asked = [(('OLS','20'),hard), (('OLS','folds'),hard)]  # the primary family, in NLL and |gap|
others = ('OLS', 'LS', 'OLS, mean of 5 folds', uniform_first, 'two-stage OLS', *tuned)
ours = {**dict.fromkeys(others, '20'), on_valid: '2'}
tried = (uniform_first, 'two-stage OLS', *ideas)
ensembles = [((f'{o}, ensemble','20'),hard) for o in ('hard','OLS')]
baselines = [k for k in ours.items() if k[0] not in ('OLS',*tried)]
more_asked = [*((k,hard) for k in ours.items()), *((('OLS','20'),k) for k in baselines),
              (('OLS','folds'),('hard','2')), (('OLS','folds'),('OLS','2')), (('OLS','folds'),('OLS','20')),
              *(((a,n),('hard',n)) for a in ('OLS','LS') for n in ('none','2','5')), (hard,('hard','none')),
              *(((o,'20'),hard) for o in (*ideas, *more_methods)),
              *(((o,h),('OLS',h)) for o in tried for h in ('none','20')),
              (('OLS','training'),('OLS','20')), ((ideas[1],'rotating'),(ideas[1],'20')),
              *(((f'OLS, targets taken out: {o}',h),('OLS',h)) for o in ('EM','inverse') for h in ('none','20')),
              *ensembles, (ensembles[1][0],ensembles[0][0])]

def half(d): return stats.t.ppf(.975, len(d)-1)*d.std(ddof=1)/len(d)**.5 if len(d)>1 else np.nan

def paired(df, a, b, measure):
    "Values of two methods over the same runs"
    wide = df.set_index(['method','calibrated','sample'])[measure]
    pair = [wide.loc[o] for o in (a,b) if o in wide.index]
    if len(pair)<2: return None
    both = pd.concat(pair, axis=1, join='inner').to_numpy()
    return both if len(both)>1 else None

@cache
def per_image(there, key, part, mednist):
    "Losses, and confidence minus being right, of each run (runs, images)"
    im = images(there[0].data, mednist)
    loss,gap,targs = [],[],im.targs(im.of(part))
    for run in there:
        p = probabilities(run.other(file_of(key)), im, part, key)
        top,at = p.max(1)
        loss.append(-p.gather(1, targs[:,None])[:,0].log())
        gap.append(top-(at==targs).double())
    return torch.stack(loss).numpy(),100*torch.stack(gap).numpy()

def draws(im, part, whole, n=2000):
    "Weights of the test images in each draw: whole classes, or images within each class (n, images)"
    rng,targs = np.random.default_rng(0),im.targs(im.of(part)).numpy()
    K = len(im.classes)
    if whole: return rng.multinomial(K, np.full(K, 1/K), n)[:,targs].astype(float)
    w = np.zeros((n,len(targs)))
    for k in range(K):
        at = np.flatnonzero(targs==k)
        w[:,at] = rng.multinomial(len(at), np.full(len(at), 1/len(at)), n)
    return w

def both_drawn(a, b, w, measure):
    "The difference with runs and test images drawn anew: 95 % interval, and that of the images alone"
    def by_run(x): return w@x.T/w.sum(1, keepdims=True)
    d = abs(by_run(a))-abs(by_run(b)) if measure=='|gap|' else by_run(a)-by_run(b)
    S = d.shape[1]
    runs_drawn = np.random.default_rng(1).multinomial(S, np.full(S, 1/S), len(d))/S
    return np.quantile((d*runs_drawn).sum(1), [.025,.975]),np.quantile(d.mean(1), [.025,.975])

def difference(df, a, b, measure, where, part):
    "One comparison, over the runs that both have"
    both = paired(df, a, b, measure)
    if both is None: return None
    d = both[:,0]-both[:,1]
    names = dict(method=a[0], calibrated=a[1], against=b[0], against_calibrated=b[1])
    means = dict(mean=both[:,0].mean(), mean_against=both[:,1].mean(), difference=d.mean(), sd=d.std(ddof=1))
    p = stats.ttest_1samp(d, 0).pvalue if d.std()>0 else np.nan
    interval = dict(low=d.mean()-half(d), high=d.mean()+half(d), p=p)
    return dict(**where, images=part, measure=measure, **names, runs=len(d), **means, **interval)

def file_of(key): return 'OLS, folds' if key[1]=='folds' or key[0]=='OLS, mean of 5 folds' else key[0]

def with_images(row, mednist, w):
    "The intervals of a comparison that draw test images too"
    s = settings[row['data']]
    a,b = (row['method'],row['calibrated']),(row['against'],row['against_calibrated'])
    every = [Run(row['data'], row['labels'], s['epochs'], i, i, '') for i in range(s['runs'])]
    there = tuple(o for o in every if o.other(file_of(a)).fn.exists() and o.other(file_of(b)).fn.exists())
    x = 0 if row['measure']=='NLL' else 1
    both = (per_image(there, o, row['images'], mednist)[x] for o in (a,b))
    (low,high),(low1,high1) = both_drawn(*both, w, row['measure'])
    return dict(low_both=low, high_both=high, low_images=low1, high_images=high1)

def differences(df, mednist):
    "The primary family, and everything else"
    df = df.assign(**{'|gap|': df.gap.abs()})
    df = df[(df['init']==-1)|(df['init']==df['sample'])]  # -1: ensembles
    df = df[df.epochs==df.data.map({k: s['epochs'] for k,s in settings.items()})]
    rows = []
    for (data,labels,part),d in df.groupby(['data','labels','images'], sort=False):
        where,whole = dict(data=data, labels=labels),data=='BrainRegions'
        w = draws(images(data, mednist), part, whole)
        for a,b in dict.fromkeys([*asked,*more_asked]):
            first = labels=='right' and part=='test' and (a,b) in asked
            for m in measures:
                row = difference(d, a, b, m, where, part)
                if row is None: continue
                family = 'primary' if first and m in ('NLL','|gap|') else 'secondary'
                more = with_images(row, mednist, w) if m in ('NLL','|gap|') and (a,b) in asked else {}
                rows.append(dict(family=family, **row, **more))
    out = pd.DataFrame(rows)
    is_primary = out.family=='primary'
    out['p_holm'] = np.nan
    out.loc[is_primary,'p_holm'] = holm(out.p[is_primary])
    out.loc[~is_primary,'p'] = np.nan  # no tests
    return out

def components(df):
    "Of OLS minus hard labels, from the grid: standard deviations of samples, of first weights, of the rest"
    df = df.assign(**{'|gap|': df.gap.abs()})
    for data,s in settings.items():
        g = range(s['grid'])
        d = df[(df.data==data)&(df.labels=='right')&(df.epochs==s['epochs'])]
        d = d[(d.images=='test')&(d.calibrated=='20')]
        d = d[d['sample'].isin(g)&d['init'].isin(g)]
        for m in ('NLL','|gap|','Top-1 error %'):
            wide = d.pivot(index=['sample','init'], columns='method', values=m)
            if not {'hard','OLS'}<=set(wide) or len(wide)<len(g)**2: continue
            x = (wide.OLS-wide.hard).unstack('init').to_numpy()
            n,rest = len(g),x-x.mean(0)-x.mean(1, keepdims=True)+x.mean()
            within = (rest**2).sum()/(n-1)**2
            of_sample,of_init = (max(0, x.mean(o).var(ddof=1)-within/n) for o in (1,0))
            sds = dict(sd_sample=of_sample**.5, sd_init=of_init**.5, sd_rest=within**.5)
            yield dict(data=data, measure=m, samples=n, inits=n, mean=x.mean(), **sds)

def table(mednist):
    warnings.filterwarnings('ignore')
    done = [o for o in all_runs() if o.fn.exists()]
    df = pd.concat([*(judged(o, mednist) for o in done), pd.DataFrame(ensemble_rows(mednist))], ignore_index=True)
    rounded = df.round(dict.fromkeys(df.select_dtypes('float'), 6))
    write_table(rounded, 'evidence.csv')
    write_table(differences(df, mednist).round(6), 'evidence_differences.csv')
    found = pd.DataFrame(components(df))  # none before a grid is complete
    if len(found): write_table(found.round(6), 'evidence_variance.csv')
    out = pd.read_csv(Path(__file__).parent/'evidence_differences.csv')
    shown = ['data','measure','method','calibrated','runs','mean','mean_against','difference','low','high','p_holm']
    print(out[out.family=='primary'][shown].round(4).to_string())

if __name__=='__main__': dict(pilot=pilot, run=run_all, table=table)[sys.argv[1]](*sys.argv[2:])
