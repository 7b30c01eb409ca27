"One test for each defect known of public implementations (methods of online label smoothing elsewhere)."
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from fastai.basics import Callback, F, nn
from conftest import toy_data, toy_learner, K
from ols_fastai.train.ols import OLSCallback
from ols_fastai.train.soft_labels import RowSums, SoftLabels

def constant_learner(logits, targs, **kwargs):
    "A network that answers sample `i` with `logits[i]`, whatever it is trained on"
    class Table(nn.Module):
        def __init__(self): super().__init__(); self.zero = nn.Parameter(torch.zeros(()))
        def forward(self, i): return logits[i[:,0].long()] + 0*self.zero
    x = torch.arange(len(logits))[:,None].float()
    return toy_learner(data=(x,targs), valid=(x,targs), model=Table(), shuffle=False, **kwargs)

def test_a_class_twice_in_a_batch_counts_twice():
    "`A[y] += p` keeps one sample of each class"
    p = torch.tensor([[.9,.05,.05], [.5,.3,.2], [.1,.8,.1]])
    cb = OLSCallback()
    constant_learner(p.log(), torch.tensor([0,0,1])).fit(1, cbs=cb)
    torch.testing.assert_close(cb.S[0], torch.tensor([.7,.175,.125]))

def test_soft_labels_are_looked_up_by_the_true_class():
    "and not by the class that was predicted"
    z = torch.tensor([[0.,3.,0.]])
    cb = OLSCallback(alpha=0., init='hard')
    learn = constant_learner(z, torch.tensor([2]))
    seen = []
    class Watch(Callback):
        order,run_valid = 99,False
        def after_loss(self): seen.append(self.loss.item())
    learn.fit(1, cbs=[cb,Watch()])
    assert seen==[pytest.approx(F.cross_entropy(z, torch.tensor([2])).item(), abs=1e-6)]

def test_validation_batches_are_not_accumulated():
    "fastai never calls .eval() on a loss, so that a loss that accumulates sees them"
    cb = OLSCallback()
    learn = toy_learner(valid=(toy_data(60, seed=1)[0], torch.zeros(60, dtype=torch.long)))
    counts = []
    class Watch(Callback):
        def before_validate(self): counts.append((cb.labels.count.clone(), cb.labels.total.clone()))
        def after_validate(self): counts.append((cb.labels.count.clone(), cb.labels.total.clone()))
    learn.fit(2, cbs=[cb,Watch()])
    for before,after in (counts[:2],counts[2:]):
        for b,a in zip(before, after): assert torch.equal(b, a)
    S = cb.S.clone()
    learn.add_cb(cb)
    learn.validate(); learn.get_preds(); learn.get_preds(ds_idx=0)
    assert torch.equal(cb.S, S) and cb.labels.count.sum()==0

@pytest.mark.parametrize('pairs', [False, True], ids=['fp64','pairs of fp32'])
def test_sums_of_very_many_pixels_are_right(pairs):
    "In fp32 nothing is added from 2^24 on"
    p = torch.cat([e := .97+1e-3*torch.randn(10**6, 1, generator=torch.Generator().manual_seed(2)), 1-e], 1)
    y,sl = torch.zeros(10**6, dtype=torch.long),SoftLabels(2)
    if pairs: sl.acc = RowSums(4, 2, pairs=True)
    for _ in range(30): sl.accumulate(p, y)
    assert int(sl.count[0])==30*10**6
    torch.testing.assert_close(sl.total[0].double(), 30*p.double().sum(0), atol=0, rtol=1e-7 if pairs else 1e-12)
    sl.update()
    torch.testing.assert_close(sl.S[0].double(), p.double().mean(0), atol=1e-6, rtol=0)

@pytest.mark.parametrize('pairs', [False, True], ids=['fp64','pairs of fp32'])
def test_a_batch_of_very_many_pixels_is_right(pairs):
    n = 2*10**7
    one = torch.tensor([.97,.03])
    sums = RowSums(1, 2, pairs=pairs)
    sums.add(torch.zeros(1, dtype=torch.long).expand(n), one.expand(n, 2))
    torch.testing.assert_close(sums.total()[0].double(), n*one.double(), atol=0, rtol=1e-6 if pairs else 1e-12)

def test_sums_move_to_a_device_and_are_left_out_of_a_pickle():
    import pickle
    sl = SoftLabels(3)
    sl.accumulate(torch.eye(3), torch.arange(3))
    assert torch.equal(sl.sums().to('cpu').total(), sl.sums().total()) and torch.equal(sl.sums().to('cpu').counts, sl.sums().counts)
    assert pickle.loads(pickle.dumps(sl)).count.tolist()==[0,0,0] and set(sl.state_dict())=={'dense','used_fallback'}

def test_accumulators_are_summed_over_processes(tmp_path):
    import torch.multiprocessing as mp
    mp.spawn(_one_of_two, args=(str(tmp_path/'init'),str(tmp_path)), nprocs=2)
    p,t = torch.randn(50, K, generator=torch.Generator().manual_seed(3)).mul(3).softmax(1),torch.arange(50)%(K-1)
    p[7] = float('nan')
    one = SoftLabels(K)
    one.accumulate(p, t)
    skipped = int(one.n_skipped)
    one.update()
    for rank in (0,1):
        S,n_skipped,used_fallback = torch.load(tmp_path/f'{rank}.pt')
        torch.testing.assert_close(S, one.S, atol=1e-6, rtol=0)
        assert int(n_skipped)==skipped==1 and torch.equal(used_fallback, one.used_fallback) and used_fallback[K-1]

def _one_of_two(rank, init, out):
    "Parts of uneven size, and class 2 is seen by the first process alone"
    torch.distributed.init_process_group('gloo', init_method=f'file://{init}', rank=rank, world_size=2)
    p,t = torch.randn(50, K, generator=torch.Generator().manual_seed(3)).mul(3).softmax(1),torch.arange(50)%(K-1)
    p[7] = float('nan')
    first = (torch.arange(50)<20) | (t==2)
    sl = SoftLabels(K)
    mine = first if rank==0 else ~first
    sl.accumulate(p[mine], t[mine])
    sl.all_reduce()
    skipped = sl.n_skipped.clone()
    sl.update()
    torch.save((sl.S,skipped,sl.used_fallback), f'{out}/{rank}.pt')
    torch.distributed.destroy_process_group()

def test_soft_labels_are_saved_and_not_an_epoch_stale(tmp_path):
    fn,cb = tmp_path/'ols.safetensors',OLSCallback(checkpoint=tmp_path/'ols.safetensors')
    after = []
    class Watch(Callback):
        order = 99
        def after_epoch(self): after.append((OLSCallback.load(fn).S, cb.S.clone(), OLSCallback.load(fn).n_trained))
    toy_learner().fit(3, cbs=[cb,Watch()])
    assert [n for *_,n in after]==[1,2,3]
    for saved,now,_ in after: assert torch.equal(saved, now)
    assert not torch.equal(after[1][0], after[2][0])

@pytest.mark.parametrize('fallback', ['uniform','hard','ls','previous'])
def test_a_class_with_no_correct_sample_has_a_distribution(fallback):
    z = torch.eye(K)[[0,1,2,0,1]]*4                      # classes 3 and 4 are always wrong, 5 is not there
    cb = OLSCallback(fallback=fallback)
    constant_learner(z, torch.tensor([0,1,2,3,4])).fit(2, cbs=cb)
    torch.testing.assert_close(cb.S.sum(1), torch.ones(K))
    assert cb.history[-1]['used_fallback']==[3,4,5]

class Count(TorchDispatchMode):
    def __init__(self): super().__init__(); self.ops = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(str(func))
        return func(*args, **(kwargs or {}))

def test_no_loop_over_samples_and_no_device_sync_in_a_batch():
    "As many operations for 8 samples of 3 classes as for 80 of 30, and none that waits for a device"
    ops = {}
    for n,k in ((8,3),(80,30)):
        learn,cb = toy_learner(K=k, n=n, bs=n, shuffle=False),OLSCallback()
        counts = Count()
        class Watch(Callback):
            "Enters the mode around the callback's own events alone"
            run_valid = False
            order = OLSCallback.order-.5
            def after_pred(self): counts.__enter__()
            def after_loss(self): counts.__enter__()
            def after_batch(self): counts.__enter__()
        class Unwatch(Watch):
            order = OLSCallback.order+.5
            def after_pred(self): counts.__exit__(None,None,None)
            def after_loss(self): counts.__exit__(None,None,None)
            def after_batch(self): counts.__exit__(None,None,None)
        learn.fit(1, cbs=[cb])                         # makes the soft labels
        counts.ops.clear()
        learn.fit(1, cbs=[cb,Watch(),Unwatch()])
        ops[n] = list(counts.ops)
    assert ops[8]==ops[80] and 'aten.index_add_.default' in ops[8]
    waits = [o for o in ops[8] if any(w in o for w in ('_local_scalar_dense','nonzero','masked_select','is_nonzero','unique','aten.equal'))]
    assert not waits
