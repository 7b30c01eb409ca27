"One of two processes of tests/test_distributed.py: torchrun --nproc_per_node 2 distrib_worker.py OUT"
import sys, torch
from fastai.basics import *
from fastai.distributed import *
from conftest import toy_data, toy_learner
from ols_fastai.train.methods import CPLSCallback
from ols_fastai.train.ols import OLSCallback
from ols_fastai.calibration.interpretation import CalibrationInterpretation
from ols_fastai.calibration.scaling import Calibrate

def broadcast_cpu(self, t, rank):  # fastai's goes through .cuda()
    t = torch.LongTensor(t)
    torch.distributed.broadcast(t, rank)
    return t.tolist()
DistributedDL._broadcast = broadcast_cpu

class Watch(Callback):
    order,run_valid = 99,False
    def before_backward(self): batches.append((self.epoch, self.pred.detach().softmax(1), self.y.as_subclass(torch.Tensor)))
    def after_epoch(self): S.append(cb.S.clone())

if __name__=='__main__':
    x,y = toy_data(101)
    y,order = y.sort()   # the first process alone sees the first classes
    batches,S,cb = [],[],OLSCallback(checkpoint=f'{sys.argv[1]}/ols.safetensors', correct_only=False)  # so that a sample counted twice shows
    learn = toy_learner(data=(x[order],y), bs=10, shuffle=False)
    with learn.distrib_ctx(sync_bn=False, cpu=True):
        learn.fit(2, cbs=[cb,Watch(),Calibrate()])
        T,learn.model = learn.model.T,learn.model.model
        interp = CalibrationInterpretation.from_learner(learn)
        z = learn.model(toy_data(60, seed=1)[0]).detach()  # its validation set, in one piece
        # 61 validation images for two processes: fastai gives one of them twice
        valid = toy_data(61, seed=1)
        cpls,other = CPLSCallback(),toy_learner(data=(x[order],y), valid=valid, bs=10, shuffle=False)
        other.fit(1, cbs=cpls)
        cpls = dict(S=cpls.S, z=get_model(other.model)(valid[0]).detach(), y=valid[1])
        torch.save(dict(cpls=cpls, S=S, batches=batches, history=cb.history, world=num_distrib(), T=T, preds=interp.preds, targs=interp.targs, z=z), f'{sys.argv[1]}/{rank_distrib()}.pt')
