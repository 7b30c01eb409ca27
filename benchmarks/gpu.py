"""What OLSCallback costs on a GPU, what feeds it, and the embedded data trained long on it.

    python benchmarks/gpu.py measure                                     # 2 minutes; writes gpu.csv, part by part
    OMP_NUM_THREADS=1 python benchmarks/gpu.py lengths MEDNIST 0 12 300  # process 0 of 12, for at most 300 s
    python benchmarks/gpu.py table MEDNIST                               # gpu_lengths.csv, of what is there

`measure`, one process and nothing beside it. Steps: ResNet-50 in fastai's loop, 224 px, channels last, bf16, one batch
that lies on the GPU, with and without the callback in turns, five rounds after one to warm up, in CUDA events; `Adam`
is fastai's, `fused SGD` torch's in fastai's OptimWrapper, the cheapest loop that there is. Memory: the peak that
torch allocated. Kernels: what the profiler counts. Updates: loss, gradient and accumulation of one batch, beside the
ways of step_cost.py. Loader: PNG and JPEG files to normalised batches on the GPU, an epoch, beside what ResNet-50
takes in training; with the cache from the second epoch on.

`lengths`: evidence.py's BrainRegions, its samples and settings, hard labels, LS and OLS trained for 20, 40 and 80
epochs, with no temperature and with one of 20 validation images a class, in fp32 without TF32."""
import itertools, os, statistics, sys, tempfile, time, warnings
from pathlib import Path
import pandas as pd, torch
from fastai.basics import *
from fastai.losses import CrossEntropyLossFlat
from torchvision.models import resnet50
from common import here, write_table
from image_speed import make_files
from step_cost import update_ways
from ols_fastai.core import quiet_learner
from ols_fastai.data.loaders import image_dls
from ols_fastai.train.ols import OLSCallback
from ols_fastai.train import soft_labels

rounds = 5
cuda = torch.cuda.is_available()
device = torch.device('cuda' if cuda else 'cpu')
size = 224 if cuda else 32

def card(): return torch.cuda.get_device_name() if cuda else 'no GPU'

def milliseconds(f):
    "Of a call, by events on the GPU"
    if not cuda:
        start = time.perf_counter()
        f()
        return 1000*(time.perf_counter()-start)
    start,end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    f()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)

def in_turns(fs, n):
    "way -> milliseconds of each round, a call counted as n"
    for f in fs.values(): f()
    times = {k: [] for k in fs}
    for _ in range(rounds):
        for k,f in fs.items(): times[k].append(milliseconds(f)/n)
    return times

def rows(what, times, base, **about):
    for k,o in times.items():
        ratios = [a/b for a,b in zip(o, times[base])]
        spread = dict(ratio=statistics.median(ratios), lowest=min(ratios), highest=max(ratios))
        value = round(statistics.median(o), 4)
        yield dict(what=what, **about, way=k, value=value, unit='ms', **{k: round(v, 4) for k,v in spread.items()})

# ---- steps

class Repeated:
    "A loader that gives one batch n times"
    def __init__(self, batch, n): self.batch,self.n,self.bs,self.device = batch,n,len(batch[0]),batch[0].device
    def __len__(self): return self.n
    def __iter__(self): return iter([self.batch]*self.n)

opts = {'Adam': Adam, 'fused SGD': partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, fused=cuda))}

def step_learner(K, bs, n, opt):
    x = torch.randn(bs, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    dl = Repeated((x,torch.randint(0, K, (bs,), device=device)), n)
    dls = DataLoaders(dl, dl, device=device)
    net = resnet50(num_classes=K).to(device, memory_format=torch.channels_last)
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), opt_func=opts[opt], lr=1e-4)
    learn._do_epoch_validate = noop
    return learn.to_bf16() if cuda else learn

def step_rows(K, bs, n, opt):
    fresh = step_learner(K, bs, n, opt)
    with quiet_learner(fresh):
        ways = {'plain': lambda: fresh.fit(1), 'OLSCallback': lambda: fresh.fit(1, cbs=OLSCallback(fallback='hard'))}
        yield from rows('step of ResNet-50', in_turns(ways, n), 'plain', K=K, batch=bs, with_=opt)
        if not cuda: return
        for k,f in ways.items():
            torch.cuda.reset_peak_memory_stats()
            f()
            peak = torch.cuda.max_memory_allocated()/2**20
            yield dict(what='memory of ResNet-50', K=K, batch=bs, with_=opt, way=k, value=round(peak, 1), unit='MiB')
        fresh.dls.train.n = 4
        for k,f in ways.items():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof: f()
            kernels = sum(o.device_type==torch.autograd.DeviceType.CUDA for o in prof.events())
            yield dict(what='kernels of ResNet-50', K=K, batch=bs, with_=opt, way=k, value=kernels/4, unit='a step')

def all_step_rows():
    if not cuda: return (yield from step_rows(10, 4, 1, 'fused SGD'))  # to see that it runs
    for opt in opts: yield from step_rows(165, 64, 60, opt)
    yield from step_rows(1000, 64, 60, 'fused SGD')
    for K in (165,1000): yield from step_rows(K, 256, 24, 'fused SGD')

# ---- updates

def update_rows():
    n = 10
    def repeated(f): return lambda: [f() for _ in range(n)]
    for K,bs in itertools.product((100,165,1000,10_000,21_841) if cuda else (100,), (64,256)):
        for part in parts_of_sums:
            soft_labels._part = part
            fs = {k: repeated(f) for k,f in update_ways(K, bs, device).items()}
            yield from rows('update and loss', in_turns(fs, n), 'ours', K=K, batch=bs, with_=f'parts of {part}')

parts_of_sums = (2**18,2**24)

# ---- loader

def loader_rows(workers=(0,4,8,16) if cuda else (0,2)):
    with tempfile.TemporaryDirectory() as tmp:
        for ext,side in itertools.product(('png','jpg'), (224,512)):
            fns = make_files(Path(tmp)/f'{ext}{side}', side, ext, True)*(8 if cuda else 1)
            root = fns[0].parent.parent
            names,labels = zip(*((o.relative_to(root).as_posix(),o.parent.name) for o in fns))
            df = pd.DataFrame(dict(filename=names, label=labels, split='train'))
            df = pd.concat([df, df[:2].assign(split='valid')])
            for w,cache in itertools.product(workers, (None,root/'cache')):
                dls = image_dls(df, root=root, size=size, flip=True, bs=64, num_workers=w, device=device, cache=cache,
                                allow_overlap='file', check_files=False)
                def epoch():
                    for x,_ in dls.train: assert x.device.type==device.type
                epoch()
                took = [milliseconds(epoch) for _ in range(3)]
                speed,way = 1000*len(dls.train)*64/statistics.median(took),f"{w} threads{', cache' if cache else ''}"
                yield dict(what='loader', batch=64, with_=f'{ext}, {side} px', way=way, value=round(speed, 1),
                           unit='images a second')

def measure():
    out = []
    for part in (all_step_rows, update_rows, loader_rows):
        start = time.time()
        for row in part():
            out.append(dict(row, card=card(), cores=os.cpu_count(), load=round(os.getloadavg()[0], 1)))
            write_table(pd.DataFrame(out), 'gpu.csv', Path(os.environ.get('OUT', here)))
        print(part.__name__, round(time.time()-start), 's', flush=True)
    print(pd.DataFrame(out).drop(columns=['card','cores']).to_string())

# ---- the embedded data, trained long

def length_runs():
    import evidence as e
    for sample in range(20):
        for epochs,method in itertools.product((20,40,80), e.plain):
            yield e.Run('BrainRegions', 'right', epochs, sample, sample, method)

def lengths(mednist, i, n, limit):
    import evidence as e
    warnings.filterwarnings('ignore')
    torch.backends.cudnn.allow_tf32 = False  # else a learner that is loaded on a CPU differs in the third digit
    start = time.time()
    for run in list(length_runs())[int(i)::int(n)]:
        if time.time()-start>float(limit): break
        if not run.fn.exists(): print(e.do(run, e.images(run.data, mednist)), flush=True)
        e.judged(run, mednist)

def table(mednist):
    found = [o.fn.with_suffix('.csv') for o in length_runs()]
    df = pd.concat([pd.read_csv(o, dtype=dict(calibrated=str)) for o in found if o.exists()])
    write_table(df.assign(card=card()), 'gpu_lengths.csv', Path(os.environ.get('OUT', here)))
    shown = df[(df.images=='test')&df.method.isin(['hard','LS','OLS'])&df.calibrated.isin(['none','20'])]
    measures = ['NLL','gap','Top-1 error %','debiased CE','T']
    print(shown.groupby(['epochs','calibrated','method'])[measures].mean().round(4).to_string())

if __name__=='__main__': dict(measure=measure, lengths=lengths, table=table)[sys.argv[1]](*sys.argv[2:])
