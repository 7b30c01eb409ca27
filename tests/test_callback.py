"OLSCallback in every situation in which a fastai user puts it."
import warnings
import numpy as np, pytest, torch
from torch.utils.data import TensorDataset
from fastai.basics import CancelEpochException, CancelFitException, Callback, DataLoader, F, L, Learner, Path, nn, no_random
from fastai.callback.all import (CSVLogger, CutMix, EarlyStoppingCallback, GradientAccumulation, GradientClip, MixUp, ProgressCallback, ReduceLROnPlateau,
                                 SaveModelCallback, ShowGraphCallback, TerminateOnNaNCallback)
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import *
from fastai.callback.training import ShortEpochCallback
from fastai.interpret import Interpretation
from fastai.data.all import CategoryBlock, DataBlock, RandomSplitter, TransformBlock
from fastai.learner import load_learner
from fastai.losses import BaseLoss, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.metrics import accuracy
from conftest import K, toy_data, toy_learner, toy_model, weights
from ols_fastai.train.losses import MaxSup, MbLS, SoftmaxLoss
from ols_fastai.train.methods import CPLSCallback, FixedTargets, TfKDSelf, parse_method
from ols_fastai.train.ols import OLSCallback, RecordSoftLabels
from ols_fastai.train.soft_labels import SoftLabels
from ols_fastai.train.targets import SoftTargetCallback

def same(a, b, atol=1e-6): torch.testing.assert_close(a, b, atol=atol, rtol=0)
def identity(**kwargs): return OLSCallback(alpha=0., init='hard', fallback='previous', min_count=10**9, **kwargs)  # S stays one-hot

class Watch(Callback):
    "Keeps what `f` returns at an event"
    order = 99
    def __init__(self, f, on='after_epoch'):
        self.f,self.seen = f,[]
        setattr(self, on, lambda: self.seen.append(self.f(self)))

# ---- fitting

def test_fit_and_fit_one_cycle_learn_every_epoch():
    for fit in ('fit','fit_one_cycle','fit_flat_cos'):
        cb = OLSCallback()
        learn = toy_learner()
        getattr(learn, fit)(3, cbs=cb)
        assert cb.n_trained==len(cb.history)==3 and [o['epoch'] for o in cb.history]==[1,2,3]
        same(cb.S.sum(1), torch.ones(K)); assert not torch.equal(cb.S, torch.full((K,K), 1/K))

def test_fine_tune_carries_soft_labels_over():
    cb = OLSCallback()
    learn = toy_learner(splitter=lambda m: [list(m[:2].parameters()), list(m[2:].parameters())])
    w = Watch(lambda o: (None if cb.S is None else cb.S.clone(), o.learn.opt.frozen_idx), 'before_train')
    before = Watch(lambda o: cb.S.clone() if cb.labels else None, 'before_fit')
    learn.add_cbs([cb,w,before])
    learn.fine_tune(2, freeze_epochs=1)
    assert cb.n_trained==3 and [f for _,f in w.seen[1:]]==[0,0]
    S_frozen = before.seen[1]
    assert S_frozen is not None and not torch.equal(S_frozen, torch.full((K,K), 1/K))
    same(w.seen[1][0], S_frozen)     # the unfrozen part starts where the frozen one stopped

def test_several_fits_in_a_row_go_on():
    cb,learn = OLSCallback(),toy_learner()
    learn.fit(2, cbs=cb); S = cb.S.clone()
    first = Watch(lambda o: cb.S.clone(), 'before_train')
    learn.fit(1, cbs=[cb,first])
    assert torch.equal(first.seen[0], S) and cb.n_trained==3

def test_second_fit_after_more_data():
    cb,learn = OLSCallback(),toy_learner()
    learn.fit(1, cbs=cb); n = cb.history[-1]['n_correct']
    learn.dls.loaders[0] = DataLoader(TensorDataset(*toy_data(4800)), bs=40, shuffle=True, num_workers=0)
    learn.fit(1, cbs=cb)
    assert cb.history[-1]['n_correct'] > 5*n

def test_passed_in_learner_in_fit_or_added():
    def run(how):
        cb,learn = OLSCallback(),None
        learn = toy_learner(cbs=cb) if how=='learner' else toy_learner()
        if how=='add': learn.add_cb(cb)
        learn.fit(2, cbs=cb if how=='fit' else None)
        return cb.S.clone(), weights(learn)
    a = run('learner')
    for how in ('fit','add'):
        b = run(how)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

def test_soft_labels_stay_on_the_learner():
    learn = toy_learner()
    learn.fit(1, cbs=OLSCallback())
    same(learn.soft_labels.S.sum(1), torch.ones(K))

def test_another_learner_is_refused():
    cb = OLSCallback()
    toy_learner().fit(1, cbs=cb)
    with pytest.raises(ValueError, match='learnt its soft labels with another network'): toy_learner().fit(1, cbs=cb)

def test_two_callbacks_in_one_fit_are_refused():
    learn = toy_learner(cbs=OLSCallback())
    with pytest.raises(ValueError, match='two OLSCallbacks'): learn.fit(1, cbs=OLSCallback())
    learn.validate()  # only training is refused

def test_start_epoch_skips_without_learning():
    cb = OLSCallback()
    toy_learner().fit(5, cbs=cb, start_epoch=3)
    assert cb.n_trained==2

# ---- lr_find

@pytest.mark.parametrize('when', ['before','between'])
def test_lr_find_changes_nothing(when):
    def run(find):
        learn,cb = toy_learner(),OLSCallback()
        learn.add_cb(cb)
        if when=='between':
            with no_random(1): learn.fit(2)
        state = (cb.S.clone(),list(cb.history),cb.labels.total.clone()) if cb.labels else None
        if find:
            with no_random(2): learn.lr_find(num_it=25, show_plot=False)
            assert cb.n_trained==(2 if when=='between' else 0)
            if state: assert torch.equal(cb.S, state[0]) and cb.history==state[1] and torch.equal(cb.labels.total, state[2])
            else: assert torch.equal(cb.S, torch.full((K,K), 1/K)) and cb.labels.total.sum()==0
        learn.dls.train.rng.seed(5)
        with no_random(3): learn.fit(2)
        return cb.S.clone(), weights(learn)
    for a,b in zip(run(True), run(False)): assert torch.equal(a, b)

def test_lr_find_searches_on_the_loss_that_is_trained():
    learn,cb = toy_learner(),OLSCallback(alpha=0., init='uniform')
    losses = Watch(lambda o: o.loss.item(), 'after_loss')
    learn.add_cbs([cb,losses])
    learn.lr_find(num_it=6, show_plot=False)
    assert losses.seen[0] > np.log(K)-.01   # the cross-entropy with uniform targets is at least log K

# ---- other callbacks

class BF16(MixedPrecision):
    "fastai's mixed precision, whose autocast is for CUDA alone, on the CPU"
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)

@pytest.mark.parametrize('dtype', ['bf16','fp16'])
def test_mixed_precision_accumulates_no_half_precision(dtype):
    learn,cb = toy_learner(shuffle=False),OLSCallback()
    mp = BF16('bf16')
    if dtype=='fp16':
        class Half(nn.Module):   # what a network gives under fp16 autocast
            def __init__(self, m): super().__init__(); self.m = m
            def forward(self, x): return self.m(x).half()
        learn.model,mp = Half(learn.model),None
    kinds = Watch(lambda o: (o.learn.pred.dtype,cb.now.batch[0].dtype,o.learn.loss_grad.dtype), 'before_backward')
    A = torch.zeros(K, K)
    def reference(o):
        for p,t in zip(o.learn.pred.detach().float().softmax(1), o.learn.y):
            if p.argmax()==t: A[t] += p
    ref = Watch(reference, 'before_backward')
    learn.fit(1, cbs=L(cb,kinds,ref)+L(mp))
    assert cb.S.dtype==torch.float32 and cb.labels.total.dtype==torch.float64
    assert all(o[2]==torch.float32 for o in kinds.seen)
    if dtype=='bf16': assert all(o[0]==torch.float32 for o in kinds.seen)
    ok = A.sum(1)>0
    same(cb.S[ok], (A/A.sum(1, keepdim=True))[ok])

def test_to_fp16_and_to_bf16_train_on_this_machine():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # autocast says that there is no GPU
        for to in ('to_fp16','to_bf16'):
            cb = OLSCallback()
            learn = getattr(toy_learner(), to)()
            learn.fit(1, cbs=cb)
            same(cb.S.sum(1), torch.ones(K))

def test_gradient_accumulation():
    def run(*cbs):
        learn = toy_learner()
        learn.fit(2, cbs=[*cbs, GradientAccumulation(80)])
        return weights(learn)
    cb = OLSCallback()
    same(run(identity()), run(), 1e-5)
    assert (run(OLSCallback())-run()).abs().max() > 1e-4
    learn = toy_learner(n=240, bs=40)
    correct = Watch(lambda o: int((o.pred.argmax(1)==o.y).sum()) if o.training else 0, 'after_loss')
    learn.fit(1, cbs=[cb, GradientAccumulation(80), correct])
    assert cb.history[0]['n_correct']==sum(correct.seen) and len(list(correct.seen))==6+2

def test_gradient_clip():
    a,b = toy_learner(),toy_learner()
    a.fit(1, cbs=[OLSCallback(),GradientClip(1e-4)]); b.fit(1, cbs=OLSCallback())
    start = torch.cat([o.detach().flatten() for o in toy_model().parameters()])
    assert (weights(a)-start).norm() < .1*(weights(b)-start).norm()

@pytest.mark.parametrize('weight', [None, torch.linspace(.5, 2, K)])
def test_mixup_target_is_the_mix_of_both_rows(weight):
    rows = torch.rand(K, K, generator=torch.Generator().manual_seed(1)); rows = rows/rows.sum(1, keepdim=True)
    cb,mix = FixedTargets(lambda K: rows),MixUp(.4)
    loss = CrossEntropyLossFlat(weight=weight)
    learn = toy_learner(loss_func=loss)
    w = torch.ones(K) if weight is None else weight
    def expected(o):
        lam,y,y1,logp = mix.lam[:,None],o.y,mix.yb1[0],o.pred.detach().log_softmax(1)
        target = lam*w[y][:,None]*rows[y] + (1-lam)*w[y1][:,None]*rows[y1]
        return -(target*logp).sum(1).mean().item(), o.loss.item()
    seen = Watch(expected, 'before_backward')
    learn.fit(1, cbs=[cb,mix,seen])
    assert len(seen.seen)==6
    for want,got in seen.seen: assert got==pytest.approx(want, abs=1e-5)
    assert learn.loss_func is loss

@pytest.mark.parametrize('weight', [None, torch.linspace(.5, 2, K)])
def test_mixup_with_one_hot_soft_labels_is_plain_mixup(weight):
    def run(*cbs):
        learn = toy_learner(loss_func=CrossEntropyLossFlat(weight=weight))
        with no_random(1): learn.fit(2, cbs=[*cbs,MixUp(.4)])
        return weights(learn)
    same(run(identity()), run(), 1e-5)

def image_learner(**kwargs):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, K, (120,), generator=g)
    x = torch.randn(120, 3, 8, 8, generator=g)*.1 + torch.eye(K)[y].repeat_interleave(32, 1)[:,:192].reshape(-1,3,8,8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192,K))
    return toy_learner(data=(x,y), valid=(x,y), model=model, **kwargs)

def test_cutmix_with_one_hot_soft_labels_is_plain_cutmix():
    def run(*cbs):
        learn = image_learner()
        with no_random(1): learn.fit(2, cbs=[*cbs,CutMix(1.)])
        return weights(learn)
    same(run(identity()), run(), 1e-5)
    assert (run(OLSCallback())-run()).abs().max() > 1e-4

@pytest.mark.parametrize('min_lam', [0., .8, 1.])
def test_mixed_images_teach_only_if_nearly_themselves(min_lam):
    cb,mix = OLSCallback(min_lam=min_lam),MixUp(.4)
    own = Watch(lambda o: int(((o.pred.argmax(1)==o.y) & (mix.lam>=min_lam)).sum()), 'before_backward')
    toy_learner().fit(1, cbs=[cb,mix,own])
    assert cb.history[0]['n_correct']==sum(own.seen)

def test_cutmix_batches_teach_only_if_nearly_themselves():
    cb,mix = OLSCallback(min_lam=.7),CutMix(1.)
    own = Watch(lambda o: int(((o.pred.argmax(1)==o.y) & (mix.lam>=.7)).sum()), 'before_backward')
    image_learner(bs=20).fit(4, cbs=[cb,mix,own])
    assert sum(h['n_correct'] for h in cb.history)==sum(own.seen) > 0

def test_with_early_stopping_save_model_reduce_lr_csv_and_graph(tmp_path):
    cb = OLSCallback()
    learn = toy_learner(path=tmp_path, metrics=[accuracy,*cb.metrics()])
    learn.add_cb(ProgressCallback()); learn.create_mbar = True   # the graph is drawn under the progress bar
    learn.fit(6, cbs=[cb, EarlyStoppingCallback('accuracy', min_delta=2., patience=2), SaveModelCallback('accuracy', fname='best'),
                      ReduceLROnPlateau('valid_loss', patience=1), CSVLogger(), ShowGraphCallback()])
    assert cb.n_trained==3                        # stopped after two epochs without gain
    assert (tmp_path/'models/best.pth').exists()
    log = (tmp_path/'history.csv').read_text().splitlines()
    assert log[0].split(',')[:7]==['epoch','train_loss','valid_loss','accuracy','S_diagonal','S_entropy','S_n_fallback']
    # the figures of the soft labels that an epoch was trained on: uniform in the first, learnt in the second
    assert [float(o) for o in log[1].split(',')[4:6]]==pytest.approx([1/K, np.log(K)], abs=1e-4)
    assert float(log[2].split(',')[4])==pytest.approx(cb.history[0]['diagonal'], abs=1e-4)

def test_metrics_before_any_training():
    cb = OLSCallback()
    learn = toy_learner(cbs=cb, metrics=cb.metrics())
    assert np.isnan(learn.validate()[1:]).all()

def test_short_epochs_learn_from_all_their_batches():
    cb = OLSCallback()
    learn = toy_learner()
    correct = Watch(lambda o: int((o.pred.argmax(1)==o.y).sum()), 'before_backward')
    learn.fit(1, cbs=[cb, ShortEpochCallback(.4), correct])
    assert len(correct.seen)==4 and cb.history[0]['n_correct']==sum(correct.seen)

def test_an_epoch_that_is_cut_short_learns_from_all_its_batches():
    class Cut(Callback):
        order,run_valid = -1,False
        def after_batch(self):
            if self.iter==2: raise CancelEpochException
    cb,correct = OLSCallback(),Watch(lambda o: int((o.pred.argmax(1)==o.y).sum()), 'before_backward')
    toy_learner().fit(1, cbs=[cb,Cut(),correct])
    assert len(correct.seen)==3 and cb.history[0]['n_correct']==sum(correct.seen)

def test_training_and_validation_are_observed_apart_and_once():
    class Counts(SoftTargetCallback):
        def make_rows(self, K): self.train,self.valid = [],[]; return torch.eye(K)
        def observe(self, logits, targs, keep): self.train.append(int(keep.sum()))
        def observe_valid(self, logits, targs, keep): self.valid.append(int(keep.sum()))
    cb = Counts()
    toy_learner().fit(2, cbs=cb)
    assert cb.train==[40]*12 and cb.valid==[40,20]*2
    cb = Counts()
    toy_learner().fit(1, cbs=[cb, ShortEpochCallback(.4)])   # cuts in `after_batch`, before the last batch is observed there
    assert cb.train==[40]*4 and cb.valid==[40,20]

def test_a_batch_cancelled_before_its_forward_pass_teaches_nothing():
    class Skip(Callback):
        order,run_valid = -1,False
        def before_batch(self):
            if self.iter%2: from fastai.basics import CancelBatchException; raise CancelBatchException
    cb = OLSCallback()
    correct = Watch(lambda o: int((o.pred.argmax(1)==o.y).sum()), 'before_backward')
    toy_learner().fit(1, cbs=[cb,Skip(),correct])
    assert len(correct.seen)==3 and cb.history[0]['n_correct']==sum(correct.seen)

def test_nan_loss_stops_training_with_terminate_on_nan():
    learn,cb = toy_learner(),OLSCallback()
    with torch.no_grad(): learn.model[2].bias[0] = float('nan')
    learn.fit(3, cbs=[cb,TerminateOnNaNCallback()])
    assert learn.epoch==0

# ---- losses

class MeanOfValid(nn.Module):
    "Weighted cross-entropy that divides by the number of samples that are not ignored"
    def __init__(self, weight, ignore_index, reduction='mean'): super().__init__(); self.weight,self.ignore_index,self.reduction = weight,ignore_index,reduction
    def forward(self, z, y):
        each = F.cross_entropy(z, y, self.weight, ignore_index=self.ignore_index, reduction='none')
        return each.sum()/(y!=self.ignore_index).sum() if self.reduction=='mean' else each

class MeanOfAll(nn.Module):
    "Cross-entropy that divides by the number of samples, ignored or not"
    def __init__(self, ignore_index, reduction='mean'): super().__init__(); self.ignore_index,self.reduction = ignore_index,reduction
    def forward(self, z, y):
        each = F.cross_entropy(z, y, ignore_index=self.ignore_index, reduction='none')
        return each.mean() if self.reduction=='mean' else each

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), CrossEntropyLossFlat(weight=torch.linspace(.2, 2, K)), CrossEntropyLossFlat(ignore_index=2),
                                  CrossEntropyLossFlat(weight=torch.linspace(.2, 2, K), ignore_index=2), CrossEntropyLossFlat(reduction='sum'), nn.CrossEntropyLoss(weight=torch.linspace(.2, 2, K)),
                                  FocalLossFlat(gamma=0.), FocalLossFlat(gamma=0., weight=torch.linspace(.2, 2, K)), FocalLossFlat(gamma=0., weight=torch.linspace(2, 20, K)),
                                  SoftmaxLoss(MeanOfValid, weight=torch.linspace(.2, 2, K), ignore_index=2), SoftmaxLoss(MeanOfAll, ignore_index=2)],
                         ids=['plain','weighted','ignore','weighted+ignore','sum','torch','by number','weighted, by number','larger weights, by number','by valid','by all'])
def test_one_hot_soft_labels_are_the_hard_loss(loss):
    def run(cb):
        learn = toy_learner(loss_func=loss, lr=.01)
        learn.fit(2, cbs=cb)
        return weights(learn)
    same(run(identity()), run(None), 1e-5)

@pytest.mark.parametrize('loss', [FocalLossFlat(gamma=2.), LabelSmoothingCrossEntropyFlat(eps=.2)], ids=['focal','smoothing'])
def test_custom_hard_loss_is_mixed_by_alpha(loss):
    cb = OLSCallback(alpha=.3)
    learn = toy_learner(loss_func=loss)
    def both(o):
        S = torch.full((K,K), 1/K)
        z = o.pred.detach()
        return .3*loss(z, o.y).item() - .7*(S[o.y]*z.log_softmax(1)).sum(1).mean().item(), o.loss.item(), o.learn.loss_grad.item()
    seen = Watch(both, 'before_backward')
    learn.fit(1, cbs=[cb,seen])
    for want,got,grad in seen.seen: assert got==grad==pytest.approx(want, abs=1e-5)

def test_validation_loss_is_the_learners_own():
    cb = OLSCallback()
    learn = toy_learner()
    learn.fit(2, cbs=cb)
    x,y = learn.dls.valid_ds.tensors
    own = F.cross_entropy(learn.model(x), y).item()
    assert learn.recorder.values[-1][1]==pytest.approx(own, abs=1e-5)
    learn.add_cb(cb)
    assert learn.validate()[0]==pytest.approx(own, abs=1e-5)
    _,_,losses = learn.get_preds(with_loss=True)
    same(losses, F.cross_entropy(learn.model(x), y, reduction='none').detach(), 1e-5)
    assert Interpretation.from_learner(learn).losses.mean().item()==pytest.approx(own, abs=1e-5)

def test_alpha_weighs_two_terms_of_one_scale():
    "with class weights of any scale: focal loss divides by the number of samples, cross-entropy by the sum of the weights"
    for loss in (FocalLossFlat(gamma=2., weight=torch.linspace(2, 20, K)), CrossEntropyLossFlat(weight=torch.linspace(2, 20, K))):
        by = loss.func.weight if isinstance(loss, CrossEntropyLossFlat) else torch.ones(K)
        def both(o):
            z,y,w = o.pred.detach(),o.y,loss.func.weight[o.y]
            soft = -(w*z.log_softmax(1).mean(1)).sum()/by[y].sum()   # of uniform rows
            return .3*loss(z, y).item()+.7*soft.item(), o.loss.item()
        seen = Watch(both, 'before_backward')
        toy_learner(loss_func=loss).fit(1, cbs=[OLSCallback(alpha=.3),seen])
        assert len(seen.seen)==6
        for want,got in seen.seen: assert got==pytest.approx(want, rel=1e-5)

@pytest.mark.parametrize('loss', [SoftmaxLoss(MbLS, weight=.1), SoftmaxLoss(MaxSup, weight=.1)], ids=['mbls','maxsup'])
def test_a_weight_that_is_a_number_is_no_class_weight(loss):
    cb = OLSCallback(alpha=.3)
    toy_learner(loss_func=loss).fit(1, cbs=cb)
    same(cb.S.sum(1), torch.ones(K))

class Masked(nn.Module):
    "The last class is masked by a logit of minus infinity"
    def __init__(self): super().__init__(); self.m = toy_model()
    def forward(self, x): return torch.cat([self.m(x)[:,:-1], torch.full((len(x),1), -float('inf'))], 1)

def test_alpha_1_is_the_learners_own_loss_to_the_last_bit():
    x,y = toy_data()
    def run(cb, loss, model):
        learn = toy_learner(loss_func=loss, data=(x[y<K-1],y[y<K-1]), model=model)
        losses = Watch(lambda o: o.loss.item(), 'before_backward')
        learn.fit(2, cbs=[losses,*L(cb)])
        return torch.cat([weights(learn),torch.tensor(losses.seen)])
    for loss in (CrossEntropyLossFlat(), CrossEntropyLossFlat(weight=torch.linspace(.2, 2, K)), FocalLossFlat()):
        for model in (toy_model,Masked):
            plain = run(None, loss, model())
            assert plain.isfinite().all()
            assert torch.equal(run(OLSCallback(alpha=1.), loss, model()), plain)
    same(run(identity(), CrossEntropyLossFlat(), Masked()), run(None, CrossEntropyLossFlat(), Masked()), 1e-5)  # a target of 0 costs nothing

def said(f):
    "The warnings of `f()` about losses and loaders"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        f()
    return [str(o.message) for o in seen if 'soft targets' in str(o.message) or 'balanced' in str(o.message)]

@pytest.mark.parametrize('loss,name', [(FocalLossFlat(), 'FocalLossFlat'), (LabelSmoothingCrossEntropyFlat(), 'LabelSmoothingCrossEntropyFlat'), (nn.CrossEntropyLoss(label_smoothing=.1), 'CrossEntropyLoss'),
                                       (CrossEntropyLossFlat(label_smoothing=.1, weight=torch.linspace(.2, 2, K)), r'CrossEntropyLossFlat(label_smoothing=0.1)'), (SoftmaxLoss(MaxSup), 'SoftmaxLoss')])
def test_a_loss_that_softens_by_itself_is_said_once(loss, name):
    for cb in (OLSCallback(), FixedTargets(lambda K: torch.full((K,K), 1/K), alpha=.5)):
        learn = toy_learner(loss_func=loss)
        message, = said(lambda: [learn.fit(2, cbs=cb) for _ in range(2)])
        assert name in message and type(cb).__name__ in message
    for cb in (OLSCallback(alpha=1.), OLSCallback(alpha=0.)): assert not said(lambda: toy_learner(loss_func=loss).fit(1, cbs=cb))

def test_plain_losses_are_not_warned_of():
    for loss in (CrossEntropyLossFlat(), CrossEntropyLossFlat(weight=torch.linspace(.2, 2, K), ignore_index=2), nn.CrossEntropyLoss(), F.cross_entropy, CrossEntropyLossFlat(reduction='sum')):
        assert not said(lambda: toy_learner(loss_func=loss, lr=.01).fit(1, cbs=OLSCallback()))

def test_a_balanced_loader_beside_class_weights_is_said_once():
    from fastai.callback.data import WeightedDL
    weight = torch.linspace(.2, 2, K)
    def fit(weighted, loss):
        learn = toy_learner(loss_func=loss)
        data = TensorDataset(*toy_data())
        if weighted: learn.dls.loaders[0] = WeightedDL(data, bs=40, wgts=np.ones(240), shuffle=True, num_workers=0)
        learn.fit(2, cbs=OLSCallback())
    message, = said(lambda: fit(True, CrossEntropyLossFlat(weight=weight)))
    assert 'CrossEntropyLossFlat' in message and 'class weights' in message and 'WeightedDL' in message
    assert not said(lambda: fit(False, CrossEntropyLossFlat(weight=weight))) and not said(lambda: fit(True, CrossEntropyLossFlat()))

def test_the_losses_of_the_learner_are_not_changed():
    loss = FocalLossFlat(weight=torch.linspace(.2, 2, K))
    toy_learner(loss_func=loss).fit(1, cbs=OLSCallback())
    assert loss.reduction=='mean' and torch.equal(loss.func.weight, torch.linspace(.2, 2, K))

# ---- predictions in the middle of a fit

class Peek(Callback):
    "Predicts in the middle of a fit, as users and FetchPredsCallback do"
    def __init__(self, event, order, **kwargs): self.order,self.kwargs = order,kwargs; setattr(self, event, self.peek)
    def peek(self):
        learn = self.learn
        with learn.removed_cbs([self]): learn.get_preds(**{**self.kwargs, **({'dl': learn.dls.valid} if self.kwargs.get('dl') else {})})

@pytest.mark.parametrize('cls', [OLSCallback, CPLSCallback])
@pytest.mark.parametrize('event', ['before_epoch','after_train','after_validate','after_epoch'])
@pytest.mark.parametrize('kwargs', [dict(ds_idx=0, inner=True), dict(ds_idx=0), dict(ds_idx=1), dict(dl=True, reorder=False, inner=True)], ids=['inner train','train','valid','inner valid'])
def test_predictions_in_the_middle_of_a_fit_teach_nothing(cls, event, kwargs):
    def run(*cbs):
        cb = cls()
        learn = toy_learner()
        learn.fit(2, cbs=[cb,*cbs])
        return cb,weights(learn)
    want,w = run()
    for order in ((60,) if event=='before_epoch' else (-1,OLSCallback.order+1)):  # before its first epoch fastai's Recorder can't do it
        cb,w2 = run(Peek(event, order, **kwargs))
        assert cb.n_trained==2 and torch.equal(cb.S, want.S) and torch.equal(w, w2)
        if cls is OLSCallback: assert cb.history==want.history

def test_fetching_predictions_of_training_images_teaches_cpls_nothing():
    from fastai.callback.core import FetchPredsCallback
    plain,cb = CPLSCallback(),CPLSCallback()
    toy_learner().fit(2, cbs=plain)
    toy_learner().fit(2, cbs=[cb,FetchPredsCallback(ds_idx=0)])
    assert torch.equal(cb.S, plain.S) and not torch.equal(cb.S, torch.eye(K))

def test_every_epoch_is_recorded_whatever_predicts_in_it():
    for kwargs in (dict(ds_idx=0, inner=True), dict(ds_idx=0)):
        cb,record,learn = OLSCallback(),RecordSoftLabels(),toy_learner()
        learn.add_cbs([cb,record])
        with no_random(1): learn.lr_find(num_it=6, show_plot=False)
        learn.fit(2, cbs=[Peek('after_train', 50, **kwargs),Peek('after_train', -1, **kwargs)])
        learn.validate(); learn.get_preds()
        assert list(record.matrices)==[1,2] and torch.equal(record.matrices[2], cb.S) and not torch.equal(record.matrices[1], cb.S)

def test_a_failed_prediction_in_the_middle_of_a_fit_loses_no_epoch():
    class Fails(Callback):
        def after_train(self):
            try: self.learn.get_preds(dl=[1])
            except Exception: pass
    cb,plain = OLSCallback(),OLSCallback()
    toy_learner().fit(2, cbs=plain)
    toy_learner().fit(2, cbs=[cb,Fails()])
    assert cb.n_trained==2 and torch.equal(cb.S, plain.S)

# ---- methods on the engine

def test_padding_is_that_of_the_loader_that_is_read(monkeypatch):
    seen = []
    monkeypatch.setattr(SoftTargetCallback, '_without_padding', lambda self, keep: seen.append(self.now.dl is self.learn.dl) or keep)
    toy_learner().fit(1, cbs=CPLSCallback())
    assert len(seen)==6+2 and all(seen)

def test_cpls_learns_from_the_validation_of_the_fit_alone():
    cb,learn = CPLSCallback(momentum=.25),toy_learner()
    learn.fit(1, cbs=cb)
    x,y = learn.dls.valid_ds.tensors
    guess = learn.model(x).argmax(1)
    confusion = torch.zeros(K, K).index_put_((y,guess), torch.ones(len(y)), accumulate=True)
    want = .25*torch.eye(K)+.75*confusion/confusion.sum(1, keepdim=True)
    same(cb.S, want)
    learn.add_cb(cb)
    learn.validate(); learn.get_preds(ds_idx=0)
    same(cb.S, want)
    with no_random(1): learn.lr_find(num_it=20, show_plot=False)
    same(cb.S, want); assert cb.n_trained==1

@pytest.mark.parametrize('error', [KeyboardInterrupt, CancelFitException])
def test_cpls_after_an_interrupted_validation_starts_anew(error):
    class Stop(Callback):
        order = 50
        def after_batch(self):
            if not self.training: raise error
    cb,learn = CPLSCallback(),toy_learner()
    learn.fit(1, cbs=cb); S = cb.S.clone()
    learn.add_cb(cb)
    try: learn.fit(1, cbs=Stop())
    except KeyboardInterrupt: pass
    learn.remove_cbs(learn.cbs.filter(lambda o: type(o).__name__=='Stop'))
    learn.validate(); learn.get_preds()
    assert torch.equal(cb.S, S) and cb.n_trained==1
    learn.fit(1)
    x,y = learn.dls.valid_ds.tensors
    confusion = torch.zeros(K, K).index_put_((y,learn.model(x).argmax(1)), torch.ones(len(y)), accumulate=True)
    same(cb.S, .5*S+.5*confusion/confusion.sum(1, keepdim=True))

def test_fixed_targets_have_nothing_to_save_and_serve_another_learner():
    cb = FixedTargets(lambda K: torch.full((K,K), 1/K), alpha=.8)
    for _ in range(2):
        learn = toy_learner(); learn.fit(2, cbs=cb)
        smooth = toy_learner(loss_func=CrossEntropyLossFlat(label_smoothing=.2)); smooth.fit(2)
        same(weights(learn), weights(smooth))
    assert not hasattr(FixedTargets, 'save') and not hasattr(learn, 'soft_labels')
    assert cb.state_dict()['labels']=={} and not cb.run_valid and CPLSCallback().run_valid and not OLSCallback().run_valid

def test_tfkd_self_takes_segmentation_and_class_weights():
    teacher = seg_learner(255)
    teacher.fit(1)
    cb,learn = TfKDSelf(teacher, a=.7, T=4.),seg_learner(255)
    def both(o):
        z,t = (m.permute(0,2,3,1).reshape(-1,3) for m in (o.pred.detach(),teacher.model(o.x).detach()))
        y = o.y.flatten()
        ok = y!=255
        p,q = (t/4).softmax(1)[ok],(z/4).softmax(1)[ok]
        return .3*F.cross_entropy(z[ok], y[ok]).item()+.7*16*(p*(p/q).log()).sum(1).mean().item(), o.loss.item()
    seen = Watch(both, 'before_backward')
    learn.fit(1, cbs=[cb,seen])
    for want,got in seen.seen: assert got==pytest.approx(want, abs=1e-4)

class OnlineAccuracy(SoftTargetCallback):
    "A user's method: smooth each class by how often it was right in the last epoch"
    def make_rows(self, K): return SoftLabels(K, init='hard', fallback='previous', correct_only=False)
    def observe(self, logits, targs, keep):
        hit = F.one_hot(targs, self.K).float()
        right = (logits.argmax(1)==targs)[:,None]
        self.labels.accumulate(hit.where(right, (1-hit)/(self.K-1)), targs, keep)
    def renew(self): self.labels.update()

def test_a_users_method_with_a_memory_is_ten_lines_without_a_private_name():
    import inspect, re
    source = inspect.getsource(OnlineAccuracy)
    assert source.count('\n')<=10 and not re.search(r'[.](_|now)', source)
    cb,learn = OnlineAccuracy(),toy_learner()
    right = Watch(lambda o: torch.stack([o.y,(o.pred.argmax(1)==o.y).long()]), 'before_backward')
    learn.fit(2, cbs=[cb,right])
    y,ok = torch.cat(right.seen[6:], 1)
    same(cb.S.diagonal(), torch.stack([ok[y==k].float().mean() for k in range(K)]))
    # what it has learnt goes on where a comparison does
    whole,other = OnlineAccuracy(),toy_learner()
    other.fit(2, cbs=whole)
    again = OnlineAccuracy()
    again.load_state_dict(whole.state_dict())
    assert again.n_trained==2 and torch.equal(again.S, whole.S)
    other.fit(1, cbs=again)
    assert again.n_trained==3 and not torch.equal(again.S, whole.S)

# ---- interruption

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError, CancelFitException])
@pytest.mark.parametrize('event', ['after_pred','after_loss','after_backward','after_batch','after_train'])
def test_interruption_leaves_loss_and_soft_labels_whole(error, event):
    loss = CrossEntropyLossFlat()
    cb,learn = OLSCallback(),toy_learner(loss_func=loss)
    learn.fit(1, cbs=cb)
    S = cb.S.clone()
    class Stop(Callback):
        order,run_valid = 50,False
        def __init__(self): setattr(self, event, self.stop)
        def stop(self):
            if event=='after_train' or self.iter==3: raise error('stop')
    try: learn.fit(2, cbs=[cb,Stop()])
    except (KeyboardInterrupt,RuntimeError): assert error is not CancelFitException
    assert learn.loss_func is loss and torch.equal(cb.S, S) and cb.n_trained==1
    learn.remove_cbs(learn.cbs.filter(lambda o: type(o).__name__ in ('Stop','OLSCallback')))
    correct = Watch(lambda o: int((o.pred.argmax(1)==o.y).sum()), 'before_backward')
    learn.fit(1, cbs=[cb,correct])
    assert cb.n_trained==2 and cb.history[-1]['n_correct']==sum(correct.seen)  # nothing of the broken epoch is left

@pytest.mark.parametrize('error', [KeyboardInterrupt, CancelFitException])
@pytest.mark.parametrize('event', ['after_batch','before_validate'])
def test_evaluation_after_an_interrupted_epoch_teaches_nothing(tmp_path, error, event):
    class Stop(Callback):
        order = 50
        def __init__(self): setattr(self, event, self.stop)
        def stop(self):
            if self.epoch==1 and (event=='before_validate' or self.iter==3): raise error
    stop,cb = Stop(),OLSCallback(checkpoint=tmp_path/'a')
    learn = toy_learner(cbs=cb)
    try: learn.fit(3, cbs=stop)
    except KeyboardInterrupt: pass
    S,n = cb.S.clone(),cb.n_trained
    learn.remove_cbs(learn.cbs.filter(lambda o: type(o).__name__=='Stop'))
    learn.get_preds(); learn.validate()
    # an epoch whose validation was broken off by CancelFit has ended for fastai (`after_epoch` was not called): it is not counted
    assert cb.n_trained==n==1 and torch.equal(cb.S, S) and OLSCallback.load(tmp_path/'a').n_trained==1

# ---- saving

def test_a_checkpoint_that_can_not_be_written_shows_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match='nofolder'): OLSCallback(checkpoint=tmp_path/'nofolder/a')

def test_numbers_of_numpy_can_be_saved(tmp_path):
    cb = OLSCallback(alpha=np.float32(.25), update_every=np.int64(4), momentum=np.float64(.5), checkpoint=tmp_path/'a')
    toy_learner().fit(1, cbs=cb)
    back = OLSCallback.load(tmp_path/'a')
    assert (back.alpha,back.update_every,back.label_args['momentum'])==(.25,4,.5)

@pytest.mark.parametrize('saved,wanted', [(None,2), (2,None), (3,2)])
def test_load_with_another_top_k(tmp_path, saved, wanted):
    cb = OLSCallback(top_k=saved)
    toy_learner().fit(1, cbs=cb); cb.save(tmp_path/'a')
    back = OLSCallback.load(tmp_path/'a', top_k=wanted)
    same(back.S.sum(1), torch.ones(K))
    same(back.S.topk(2).values, cb.S.topk(2).values)
    assert back.labels.top_k==wanted

def test_lr_find_with_another_network_binds_nothing():
    cb = OLSCallback()
    toy_learner(cbs=cb).lr_find(num_it=6, show_plot=False)
    other = toy_learner(K=4)
    other.fit(1, cbs=cb)
    assert cb.S.shape==(4,4)

def test_save_and_load_keep_everything(tmp_path):
    cb = OLSCallback(alpha=.3, fallback='ls', eps=.2, momentum=.5, warmup=1, update_every=4, min_lam=.7)
    learn = toy_learner(); learn.dls.vocab = list('abcdef')
    learn.fit(2, cbs=cb)
    cb.save(tmp_path/'a')
    back = OLSCallback.load(tmp_path/'a')
    for k in ('alpha','label_args','warmup','update_every','min_lam','n_trained','history','class_names'): assert getattr(back, k)==getattr(cb, k), k
    assert torch.equal(back.S, cb.S) and [o.name for o in tmp_path.iterdir()]==['a']
    cb.labels.used_fallback[2] = True
    cb.save(tmp_path/'a')
    assert OLSCallback.load(tmp_path/'a').labels.used_fallback.tolist()==cb.labels.used_fallback.tolist()
    assert OLSCallback.load(tmp_path/'a', alpha=.9, checkpoint='x').alpha==.9

def test_save_and_load_with_top_k(tmp_path):
    cb = OLSCallback(top_k=2)
    toy_learner().fit(1, cbs=cb)
    cb.save(tmp_path/'a')
    assert torch.equal(OLSCallback.load(tmp_path/'a').S, cb.S)

@pytest.mark.parametrize('names,says', [('abcdeX', r"only in the soft labels: \['f'\]; only in the data: \['X'\]"), ('bacdef', 'same names in another order')])
def test_load_with_another_vocab_names_the_classes_that_differ(tmp_path, names, says):
    learn = toy_learner(); learn.dls.vocab = list('abcdef')
    learn.fit(1, cbs=OLSCallback(checkpoint=tmp_path/'a'))
    other = toy_learner(); other.dls.vocab = list(names)
    with pytest.raises(ValueError, match=says): other.fit(1, cbs=OLSCallback.load(tmp_path/'a'))

def test_a_truncated_or_foreign_file_is_named(tmp_path):
    fn = tmp_path/'a.safetensors'
    toy_learner().fit(1, cbs=OLSCallback(checkpoint=fn))
    whole = fn.read_bytes()
    for n in (0, 5, 100, len(whole)-1):
        fn.write_bytes(whole[:n])
        with pytest.raises(ValueError, match='a.safetensors is damaged'): OLSCallback.load(fn)
    from ols_fastai.core import save_tensors
    save_tensors(fn, dict(S=torch.eye(3)), dict(x=1))
    with pytest.raises(ValueError, match='holds no soft labels'): OLSCallback.load(fn)

def test_a_crash_while_saving_keeps_the_last_file(tmp_path, monkeypatch):
    fn,cb = tmp_path/'a',OLSCallback()
    toy_learner().fit(1, cbs=cb); cb.save(fn); before = fn.read_bytes()
    import ols_fastai.core as m
    def half(tensors, path, metadata): Path(path).write_bytes(b'half'); raise OSError('disk full')
    monkeypatch.setattr(m, 'save_file', half)
    with pytest.raises(OSError): cb.save(fn)
    assert fn.read_bytes()==before and [o.name for o in tmp_path.iterdir()]==['a']

def as_point(i): return toy_data()[0][i]
def as_label(i): return 'abcdef'[toy_data()[1][i]]

def test_export_and_load_learner(tmp_path):
    block = DataBlock(blocks=(TransformBlock, CategoryBlock), get_x=as_point, get_y=as_label, splitter=RandomSplitter(.2, seed=1))
    learn = Learner(block.dataloaders(range(120), bs=20, num_workers=0, device='cpu'), toy_model(), cbs=OLSCallback(), path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    x = toy_data()[0]
    want,S = learn.model(x).detach(),learn.ols.S.clone()
    learn.export('e.pkl')
    back = load_learner(tmp_path/'e.pkl')
    same(back.model(x).detach(), want); same(back.ols.S, S)
    with back.no_bar(): assert back.predict(3)[0] in 'abcdef'
    assert learn.loss_func(want, toy_data()[1]).item()==pytest.approx(back.loss_func(want, toy_data()[1]).item())

# ---- dense prediction

def seg_learner(ignore=None, **kwargs):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (24,6,5), generator=g)
    x = torch.eye(3)[y].permute(0,3,1,2)+.5*torch.randn(24,3,6,5, generator=g)
    if ignore is not None: y[:,0] = ignore
    with torch.random.fork_rng():
        torch.manual_seed(0); model = nn.Conv2d(3, 3, 1)
    loss = CrossEntropyLossFlat(axis=1, **({} if ignore is None else dict(ignore_index=ignore)))
    return toy_learner(K=3, data=(x,y), valid=(x,y), model=model, bs=8, loss_func=loss, **kwargs)

@pytest.mark.parametrize('ignore', [None, 255, -100, 2])
def test_dense_prediction(ignore):
    cb,learn = OLSCallback(fallback='hard'),seg_learner(ignore)
    A = torch.zeros(3, 3)
    def ref(o):
        p = o.pred.detach().softmax(1).permute(0,2,3,1).reshape(-1,3)
        for q,t in zip(p, o.y.flatten()):
            if t!=ignore and q.argmax()==t: A[t] += q
    learn.fit(1, cbs=[cb,Watch(ref, 'before_backward')])
    ok = A.sum(1)>0
    same(cb.S[ok], (A/A.sum(1, keepdim=True))[ok], 1e-5)
    assert ok.sum()==(2 if ignore==2 else 3)

@pytest.mark.parametrize('ignore', [None, 255])
def test_dense_prediction_with_one_hot_soft_labels_is_the_hard_loss(ignore):
    def run(cb):
        learn = seg_learner(ignore); learn.fit(2, cbs=cb); return weights(learn)
    same(run(identity()), run(None), 1e-5)

def test_unet_learner():
    from fastai.vision.all import DynamicUnet, create_body, resnet18
    body = create_body(resnet18(), pretrained=False)
    g = torch.Generator().manual_seed(0)
    x,y = torch.randn(4,3,32,32, generator=g),torch.randint(0, 3, (4,32,32), generator=g)
    learn = toy_learner(data=(x,y), valid=(x,y), model=DynamicUnet(body, 3, (32,32)), bs=2, loss_func=CrossEntropyLossFlat(axis=1), lr=1e-3)
    cb = OLSCallback()
    learn.fit(1, cbs=cb)
    same(cb.S.sum(1), torch.ones(3), 1e-5)

# ---- what soft labels are made of

def fixed_learner(logits, targs, **kwargs):
    "A network whose answers are settled"
    class Table(nn.Module):
        def __init__(self): super().__init__(); self.zero = nn.Parameter(torch.zeros(()))
        def forward(self, i):
            with torch.no_grad(): self.zero.zero_()   # not to become NaN after a NaN loss
            return logits[i[:,0].long()] + 0*self.zero
    i = torch.arange(len(targs))[:,None].float()
    return toy_learner(data=(i,targs), valid=(i,targs), model=Table(), shuffle=False, **kwargs)

targs5,logits5 = torch.tensor([0,0,1,2,2]),torch.tensor([[2.,0,1],[3,1,0],[0,2,0],[2,0,1],[0,3,0]])

@pytest.mark.parametrize('kind,row', [('uniform',[1/3]*3), ('hard',[0.,0.,1.]), ('ls',[.1,.1,.8])])
def test_fallback_and_init(kind, row):
    cb = OLSCallback(fallback=kind, eps=.3)
    with pytest.warns(UserWarning, match=f"1 of 3 classes had too few correct samples .* have {kind!r} soft labels: 2"): fixed_learner(logits5, targs5).fit(1, cbs=cb)
    same(cb.S[2], torch.tensor(row)); assert cb.history[0]['used_fallback']==[2]
    first = Watch(lambda o: cb2.S.clone(), 'after_loss')
    cb2 = OLSCallback(init=kind, eps=.3)
    fixed_learner(logits5, targs5).fit(1, cbs=[cb2,first])
    same(first.seen[0][2], torch.tensor(row))

def test_the_warning_of_a_class_without_samples_knows_correct_only():
    cb = OLSCallback(correct_only=False, min_count=2)
    says = "1 of 3 classes had too few samples to learn from in the last epoch and have 'uniform' soft labels: 1"
    with pytest.warns(UserWarning, match=says): fixed_learner(logits5, targs5).fit(1, cbs=cb)
    assert cb.history[0]['used_fallback']==[1]

def test_fallback_previous_keeps_the_row():
    cb = OLSCallback(fallback='previous', init='ls', eps=.3)
    fixed_learner(logits5, targs5).fit(2, cbs=cb)
    same(cb.S[2], torch.tensor([.1,.1,.8]))

def test_momentum_min_count_and_all_predictions():
    p = logits5.softmax(1)
    new = torch.stack([p[:2].mean(0), p[2]])
    cb = OLSCallback(momentum=.75, init='hard'); fixed_learner(logits5, targs5).fit(1, cbs=cb)
    same(cb.S[:2], .75*torch.eye(3)[:2]+.25*new)
    cb = OLSCallback(min_count=2, fallback='hard'); fixed_learner(logits5, targs5).fit(1, cbs=cb)
    same(cb.S, torch.stack([new[0],torch.eye(3)[1],torch.eye(3)[2]])); assert cb.history[0]['used_fallback']==[1,2]
    cb = OLSCallback(correct_only=False); fixed_learner(logits5, targs5).fit(1, cbs=cb)
    same(cb.S, torch.cat([new, p[3:].mean(0)[None]]))

def test_warmup_learns_but_trains_on_the_hard_loss_alone():
    def run(n, cb):
        learn = toy_learner(); learn.fit(n, cbs=cb); return weights(learn)
    cb = OLSCallback(warmup=2)
    assert torch.equal(run(2, cb), run(2, None)) and cb.n_trained==2 and cb.history[0]['n_correct']>0
    assert not torch.equal(run(3, OLSCallback(warmup=2)), run(3, None))

def test_period_renews_within_an_epoch_and_carries_over():
    cb = OLSCallback(update_every=4)                       # 6 batches an epoch: renewed after batches 4, 8, 12
    S = Watch(lambda o: cb.S.clone() if o.training else None, 'after_batch')
    correct = Watch(lambda o: int((o.pred.argmax(1)==o.y).sum()), 'before_backward')
    toy_learner().fit(2, cbs=[cb,S,correct])
    S = [o for o in S.seen if o is not None]
    changed = [i+1 for i in range(12) if not torch.equal(S[i], S[i-1] if i else torch.full((K,K), 1/K))]
    assert changed==[4,8,12]
    assert [h['n_correct'] for h in cb.history]==[sum(correct.seen[:4]), sum(correct.seen[4:])]

def test_top_k_trains():
    cb = OLSCallback(top_k=2)
    toy_learner().fit(2, cbs=cb)
    same(cb.S.sum(1), torch.ones(K), 1e-5)
    assert all(len(set(o.tolist()))<=3 for o in cb.S)   # two entries, and the others alike

def test_non_finite_predictions_are_left_out_and_counted():
    bad = logits5.clone(); bad[1] = float('nan'); bad[2,0] = float('inf')
    cb,learn = OLSCallback(fallback='hard'),fixed_learner(bad, targs5)
    with pytest.warns(UserWarning) as seen: learn.fit(3, cbs=cb)
    assert sum('2 predictions of this epoch were not finite' in str(o.message) for o in seen)==1
    assert [h['n_skipped'] for h in cb.history]==[2,2,2]
    same(cb.S[0], bad[0].softmax(0)); same(cb.S[1], torch.eye(3)[1])

def test_non_finite_predictions_are_counted_over_all_renewals_of_an_epoch():
    bad = logits5.clone(); bad[1] = float('nan'); bad[4,0] = float('nan')
    cb,learn = OLSCallback(fallback='hard', update_every=1),fixed_learner(bad, targs5, bs=2)   # batches of 2, 2, 1: one in the first, one in the last
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); learn.fit(2, cbs=cb)
    assert [h['n_skipped'] for h in cb.history]==[2,2] and [h['n_correct'] for h in cb.history]==[3-1,3-1]

def test_a_class_that_learns_again_has_no_fallback_any_more():
    cb = OLSCallback(fallback='hard')
    learn = fixed_learner(logits5, targs5)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); learn.fit(1, cbs=cb)
    assert cb.history[-1]['used_fallback']==[2]
    logits = logits5.clone(); logits[3] = torch.tensor([0.,0.,3.])
    learn.model.forward = lambda i: logits[i[:,0].long()] + 0*learn.model.zero
    learn.fit(1, cbs=cb)
    assert cb.history[-1]['used_fallback']==[] and cb.labels.used_fallback.tolist()==[False]*3

def test_logits_given_to_accumulate_are_said_once():
    sl = SoftLabels(3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        for _ in range(3): sl.accumulate(logits5, targs5); sl.update()
    assert len(seen)==1 and 'probabilities' in str(seen[0].message) and 'logits' in str(seen[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for dtype in (torch.float16,torch.bfloat16,torch.float64):
            sl = SoftLabels(3); sl.accumulate(logits5.softmax(1).to(dtype), targs5); sl.update()

# ---- what is refused

def test_alpha_auto_says_what_to_take_instead():
    with pytest.raises(ValueError, match=r"OLSCallback\(\) with Calibrate\(\)"): OLSCallback(alpha='auto')
    with pytest.raises(ValueError, match=r"ols_auto was removed: take ols, .*`OLSCallback\(\)` with `Calibrate\(\)`"): parse_method('ols_auto')

@pytest.mark.parametrize('label', [-1, 3, 7])
@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), BaseLoss(nn.MultiMarginLoss)], ids=['ce','margin'])
def test_labels_out_of_range_are_named(label, loss):
    y = targs5.clone(); y[3] = label
    with pytest.raises(IndexError, match=rf'labels \[{label}\] are outside 0..2'): fixed_learner(logits5, y, loss_func=loss).fit(1, cbs=OLSCallback())

def test_logits_of_another_width_are_named():
    cb,learn = OLSCallback(),toy_learner()
    learn.fit(1, cbs=cb)
    learn.model[2] = nn.Linear(16, K+2)
    learn.create_opt()
    with pytest.raises(ValueError, match=f'the network has {K+2} outputs but the soft labels have {K} classes'): learn.fit(1, cbs=cb)

def test_a_head_that_does_not_fit_the_vocab_is_named():
    learn = toy_learner(); learn.dls.vocab = list('abcdefgh')
    with pytest.raises(ValueError, match=f'the network has {K} outputs but the data has 8 classes: build the network with n_out=8'): learn.fit(1, cbs=OLSCallback())

def test_targets_that_are_no_classes_are_refused():
    x,y = toy_data()
    learn = toy_learner(data=(x,torch.eye(K)[y]), valid=(x,torch.eye(K)[y]), loss_func=nn.BCEWithLogitsLoss())
    with pytest.raises(TypeError, match=r'these targets are multi-label, .*; got predictions \(40, 6\) torch.float32 and targets \(40, 6\) torch.float32') as e: learn.fit(1, cbs=OLSCallback())
    assert 'argmax' not in str(e.value)
    learn = toy_learner(data=(x,x[:,0]), valid=(x,x[:,0]), model=nn.Linear(2,2), loss_func=lambda z,y: z.sum())
    with pytest.raises(TypeError, match=r'one integer label for each; got predictions \(40, 2\) torch.float32 and targets \(40,\) torch.float32'): learn.fit(1, cbs=OLSCallback())

@pytest.mark.parametrize('kwargs,says', [(dict(alpha=-.1),'alpha'), (dict(alpha=2),'alpha'), (dict(init='x'),"'x'"), (dict(fallback='x'),"'x'"), (dict(momentum=1),'momentum'),
                                         (dict(min_count=0),'min_count'), (dict(eps=2),'eps'), (dict(warmup=-1),'warmup'), (dict(update_every=0),'update_every'), (dict(top_k=0),'top_k')])
def test_wrong_arguments_are_refused_at_once(kwargs, says):
    with pytest.raises(ValueError, match=says): OLSCallback(**kwargs)

# ---- a GPU, where nothing may wait for a label; tests/test_gpu.py has the rest

@pytest.fixture
def looks_later(monkeypatch): monkeypatch.setattr(SoftTargetCallback, '_checks_later', lambda self, targs: True)

@pytest.mark.parametrize('label', [-1, 3, 7])
def test_where_labels_are_looked_at_later_they_are_named_all_the_same(label, looks_later):
    y = targs5.clone(); y[3] = label
    with pytest.raises(IndexError, match=rf'labels \[{label}\] are outside 0..2'): fixed_learner(logits5, y).fit(1, cbs=OLSCallback())

def test_a_wrong_label_of_one_epoch_is_named_in_it(looks_later):
    cb = OLSCallback()
    y = targs5.clone(); y[4] = 3
    with pytest.raises(IndexError, match='labels'): fixed_learner(logits5, y, bs=2).fit(3, cbs=cb)
    assert cb.n_trained==0 and cb.S[0].eq(1/3).all()

@pytest.mark.parametrize('cbs', [[], [MixUp(.4)]], ids=['plain','mixup'])
def test_looking_later_changes_no_training(cbs, monkeypatch):
    def run():
        learn,cb = toy_learner(),OLSCallback()
        with no_random(0): learn.fit(2, cbs=[cb,*cbs])
        return weights(learn),cb.S
    first = run()
    monkeypatch.setattr(SoftTargetCallback, '_checks_later', lambda self, targs: True)
    for a,b in zip(first, run()): assert torch.equal(a, b)
