"""Ideas for a better OLS, or a temperature without validation images, beside plain OLS on the same images and seeds.

    OMP_NUM_THREADS=1 python benchmarks/ideas.py ../shared/data/mednist  # goes on where it was stopped

The images, networks and settings are those of exported.py, of its first seeds. A change of the training is judged as
trained, and with a temperature of 20 validation images a class; so are the two temperatures that need no validation
images, which are set beside it on the same network. Rows are in benchmarks/runs/ (not committed); the table is
ideas.csv."""
import sys, warnings
import pandas as pd, torch
from torch.utils.data import TensorDataset
from fastai.callback.core import Callback
from fastai.data.load import DataLoader
from common import runs, write_table
from exported import in_memory, lists, loaders, measured, predictions, settings, table, trained
from ols_fastai.core import write_csv
from ols_fastai.train.methods import METHODS, FixedTargets, Method
from ols_fastai.train.ols import OLSCallback
from ols_fastai.calibration.temperature import apply_temperature, cross_folds, fit_temperature

seeds = 3

# ---- other ways to train

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

# ---- temperatures without validation images

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

# ---- a seed

def judged(learn, test, idea, temperatures=()):
    "As trained, with the temperature of the validation images, and with others"
    preds,targs = predictions(learn, test)
    fitted = {'none': 1., 'validation': fit_temperature(*predictions(learn, learn.dls.valid)), **dict(temperatures)}
    for name,T in fitted.items(): yield measured(apply_temperature(preds, T), targs, idea=idea, temperature=name, T=T)

def seed_rows(data, seed, mednist):
    train,valid,test,root = lists(data, seed, mednist)
    s = settings[data]
    dls = loaders(train, valid, test, root, s['bs'])
    test = in_memory(dls.loaders.pop())
    rows = []
    def run(idea, cb, *cbs):
        METHODS['idea'] = Method(idea, lambda: cb, 'here')
        return trained('idea', seed, dls, s, *cbs)
    ols,online = OLSCallback(),TrainingPredictions()
    learn = run('OLS', ols, online)
    rows += judged(learn, test, 'OLS', {'training predictions': online.temperature()})
    S = ols.S.clone().float()
    rows += judged(run('two-stage', FixedTargets(lambda K: S, alpha=.5)), test, 'two-stage OLS')
    rows += judged(run('uniform first', UniformFirst()), test, 'one uniform epoch, then hard labels')
    rows += judged(run('diagonal', OwnDiagonal()), test, "OLS's diagonal, uniform rest")
    folds = RotatingFolds()
    learn = run('rotating', OLSCallback(), folds)
    rows += judged(learn, test, 'OLS, a fold left out in each epoch', {'rotating folds': folds.temperature()})
    return rows

def main(mednist):
    warnings.filterwarnings('ignore', message='.*(comes from the prior|had too few)')
    folder = runs/'ideas'
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for data in settings:
            fn = folder/f'{data}-{seed}.csv'
            if not fn.exists():
                write_csv(pd.DataFrame([dict(data=data, seed=seed, **o) for o in seed_rows(data, seed, mednist)]), fn)
            write_table(table(folder), 'ideas.csv')
    shown = ['Top-1 error %','NLL','debiased CE','gap','T']
    print(table(folder).groupby(['data','idea','temperature'], sort=False)[shown].mean().round(3).to_string())

if __name__=='__main__': main(*sys.argv[1:])
