"""Networks as they are exported, with one temperature: OLS against hard labels and label smoothing, each calibrated on
1, 2, 5 and 20 validation images a class, and OLS calibrated without any.

    OMP_NUM_THREADS=1 python benchmarks/exported.py ../shared/data/mednist  # goes on where it was stopped

What was fixed before the test images were looked at: 10 seeds, each with its own sample of training images, wrong
labels, validation images and weights; every setting below; alpha, eps and the prior at the package's defaults. No test
image was judged in an earlier experiment: BrainRegions is cut out anew (`seed=43`), and MedNIST's test images are
drawn from its training list. A network is trained once; `calibrate`, `export`, `load_learner` and `get_preds` follow
for each number of validation images, so that every figure is that of an exported file. The primary comparisons: OLS
with 20 images a class against hard labels and label smoothing with as many, in |confidence - accuracy| and NLL, on
both data sets, 8 in all (Holm). Rows of a seed are kept in benchmarks/runs/ (not committed); the table is
exported.csv."""
import itertools, os, sys, tempfile, warnings
from pathlib import Path
import pandas as pd, torch
from torch.utils.data import TensorDataset
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback, CancelValidException
from fastai.learner import Learner, load_learner
from fastai.callback.schedule import *
from fastai.torch_core import no_random
from fastcore.foundation import L
from common import runs, write_table, wrong_labels
from ols_fastai.core import quiet_learner, save_tensors, write_csv
from ols_fastai.data.datasets import brain_regions
from ols_fastai.data.loaders import image_dls
from ols_fastai.data.splits import sample_per_class
from ols_fastai.train.methods import METHODS
from ols_fastai.train.models import create_model
from ols_fastai.calibration.metrics import confidence_gap, summary_metrics
from ols_fastai.calibration.resampling import debiased_ce
from ols_fastai.calibration.scaling import Calibrate, calibrate, cross_calibrate, uncalibrate
from ols_fastai.calibration.temperature import fit_temperature

seeds = 10
per_class = (1,2,5,20)  # validation images
settings = {'MedNIST': dict(n_train=10, epochs=30, bs=20, lr=3e-3),
            'BrainRegions': dict(n_train=20, epochs=8, bs=32, lr=3e-3)}
arch,size,wrong = 'small_cnn',32,.2  # the share of wrong training labels is MedNIST's alone
names = dict(hard='hard', ls='LS', ols='OLS')

# ---- images

def lists(data, seed, mednist=None):
    "Tables of training, validation and test images, and the folder of the images"
    if data=='BrainRegions':
        root = brain_regions(seed=43)
        train,valid,test = (pd.read_csv(root/f'{o}.csv') for o in ('train','valid','test'))
    else:
        root = Path(mednist).resolve()
        pool,valid = (pd.read_csv(root/f'mednist_{o}.csv') for o in ('train','val'))
        test = sample_per_class(pool, 200, 17)
        train = wrong_labels(pool.drop(test.index).reset_index(drop=True), wrong, seed)
        root = root.parent
    train = sample_per_class(train, settings[data]['n_train'], seed)
    return train,sample_per_class(valid, max(per_class), seed),test,root

def loaders(train, valid, test, root, bs):
    parts = dict(train=train, valid=valid, test=test)
    df = pd.concat([o.assign(split=k) for k,o in parts.items() if o is not None], ignore_index=True)
    return image_dls(df, root=root, size=size, bs=bs, num_workers=0, check_files=False)

def in_memory(dl, bs=256, **kwargs):
    "A loader whose images are read once"
    x,y = (torch.cat([torch.Tensor(o) for o in part]) for part in zip(*dl.new(shuffle=False, drop_last=False)))
    return DataLoader(TensorDataset(x, y.long()), bs=bs, num_workers=0, **kwargs)

# ---- a seed

class NoValidation(Callback):
    "Looking at the validation images after each epoch changes nothing here"
    due = False
    def after_train(self): self.due = True
    def before_validate(self):
        if not self.due: return  # `Calibrate` predicts them
        self.due = False
        raise CancelValidException()

def trained(method, seed, dls, s, *cbs):
    "A network; its images are in memory while it is trained"
    loss,cb = METHODS[method].make()
    train = in_memory(dls.train, s['bs'], shuffle=True, drop_last=True)
    with no_random(seed):
        net = create_model(arch, len(dls.vocab)).to(memory_format=torch.channels_last)
        learn = Learner(DataLoaders(train, in_memory(dls.valid)), net, loss_func=loss, cbs=ChannelsLast())
        with quiet_learner(learn): learn.fit_one_cycle(s['epochs'], s['lr'], cbs=[NoValidation(), *L(cb), *cbs])
    learn.dls = dls
    return learn

def predictions(learn, dl):
    with learn.no_bar(): return learn.get_preds(dl=dl)

def exported(learn, dl):
    "Predictions of the learner's exported file"
    with tempfile.TemporaryDirectory() as tmp:
        fn = Path(tmp)/'learner.pkl'
        learn.export(fn)
        return predictions(load_learner(fn), dl)[0]

def measured(preds, targs, **about):
    more = {'debiased CE': debiased_ce(preds, targs), 'gap': confidence_gap(preds, targs)}
    return dict(**about, **summary_metrics(preds, targs), **more, load=round(os.getloadavg()[0], 1))

def rows_of(method, learn, test, smaller, kept):
    "As trained, and exported with a temperature of each number of validation images"
    bare,targs = predictions(uncalibrate(learn), test)
    kept[f'{method} valid'],kept[f'{method} test'] = predictions(learn, learn.dls.valid)[0],bare
    yield measured(bare, targs, method=names[method], images=0, T=1.)
    for n,dl in smaller.items():
        calibrate(learn, dl=dl)
        yield measured(exported(learn, test), targs, method=f'{names[method]} + T', images=n, T=learn.model.T)

def ensemble_rows(found, test, smaller, kept):
    "The mean of the fold networks' probabilities, then a temperature"
    preds,targs = zip(*(predictions(o, test) for o in found.learners))
    mean,targs = torch.stack(preds).double().mean(0),targs[0]
    kept['folds test'] = mean.float()
    yield measured(mean, targs, method='OLS, 5 fold networks', images=0, T=1.)
    for n,dl in smaller.items():
        valid = [predictions(o, dl) for o in found.learners]
        T = fit_temperature(torch.stack([o[0] for o in valid]).double().mean(0), valid[0][1])
        preds = (mean.log()/T).softmax(1)
        yield measured(preds, targs, method='OLS, 5 fold networks + T', images=n, T=T)

def seed_rows(data, seed, mednist):
    train,valid,test,root = lists(data, seed, mednist)
    s = settings[data]
    dls = loaders(train, valid, test, root, s['bs'])
    test = in_memory(dls.loaders.pop())
    smaller = {n: loaders(train, sample_per_class(valid, n, seed), None, root, s['bs']).valid for n in per_class}
    kept,rows = {},[]
    for method in names:
        learn = trained(method, seed, dls, s, Calibrate())
        T = learn.model.T
        rows += rows_of(method, learn, test, smaller, kept)
        assert abs(rows[-1]['T']-T)<1e-5, 'the callback at the end of fit does what calibrate does'
    def fit(df): return trained('ols', seed, image_dls(df, root=root, size=size, bs=s['bs'], num_workers=0), s)
    found = cross_calibrate(uncalibrate(learn), train.assign(split='train'), fit, seed=seed)
    preds,targs = exported(learn, test),predictions(uncalibrate(learn), test)[1]
    rows.append(measured(preds, targs, method='OLS, no held-out set', images=0, T=found.T, rho=found.rho))
    rows += ensemble_rows(found, test, smaller, kept)
    kept.update(out_of_fold=found.logits, fold_targs=found.targs, targs=targs)
    kept['valid targs'] = predictions(learn, dls.valid)[1]
    return rows,{k: torch.Tensor(v.float()) for k,v in kept.items()}

def table(folder):
    "Rows of all seeds that are there"
    return pd.concat([pd.read_csv(o) for o in sorted(folder.glob('*.csv'))], ignore_index=True)

def main(mednist):
    warnings.filterwarnings('ignore', message='.*(comes from the prior|had too few)')
    folder = runs/'exported'
    folder.mkdir(parents=True, exist_ok=True)
    for data,seed in itertools.product(settings, range(seeds)):
        fn = folder/f'{data}-{seed}.csv'
        if not fn.exists():
            rows,kept = seed_rows(data, seed, mednist)
            save_tensors(fn.with_suffix('.safetensors'), kept, dict(data=data, seed=seed))
            write_csv(pd.DataFrame([dict(data=data, seed=seed, **o) for o in rows]), fn)
        write_table(table(folder), 'exported.csv')
    shown = ['Top-1 error %','NLL','debiased CE','gap','T']
    print(table(folder).groupby(['data','method','images'], sort=False)[shown].mean().round(4).to_string())

if __name__=='__main__': main(*sys.argv[1:])
