"Trains 4 epochs with checkpoints: resume_worker.py DIR [KILL_AT_BATCH]; goes on where DIR says, and kills itself where told."
import os, signal, sys
from pathlib import Path
import torch
from fastai.basics import *
from fastai.callback.all import *
from conftest import toy_learner, weights
from ols_fastai.train.ols import OLSCallback

class SeedEpoch(Callback):
    "Makes what an epoch draws depend on its number alone"
    order = -20
    def before_epoch(self): self.dls.train.rng.seed(self.epoch); torch.manual_seed(self.epoch)

class Kill(Callback):
    order,run_valid = 99,False
    def __init__(self, at): self.at,self.n = at,0
    def after_batch(self):
        self.n += 1
        if self.n==self.at: os.kill(os.getpid(), signal.SIGKILL)

class KeepModel(Callback):
    "Network and optimiser after each epoch, at once or not at all"
    order = 60
    def after_epoch(self):
        self.learn.save('part'); os.replace(out/'models/part.pth', out/'models/last.pth')

if __name__=='__main__':
    out = Path(sys.argv[1])
    fn = out/'ols.safetensors'
    learn = toy_learner(path=out, opt_func=Adam, lr=.02)
    cb = OLSCallback.load(fn, checkpoint=fn) if fn.exists() else OLSCallback(checkpoint=fn, momentum=.3)
    if fn.exists():
        learn.create_opt(); learn.load('last')
    kill = [Kill(int(sys.argv[2]))] if len(sys.argv)>2 else []
    if cb.n_trained: learn.fit(4, cbs=[cb,SeedEpoch(),KeepModel(),*kill], start_epoch=cb.n_trained)
    else: learn.fit(4, cbs=[cb,SeedEpoch(),KeepModel(),*kill])
    torch.save(dict(S=cb.S, w=weights(learn), history=cb.history), out/'end.pt')
