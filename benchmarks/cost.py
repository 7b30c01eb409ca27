"""What an epoch of each method takes, in seconds and in memory, against hard labels in the same run.

    OMP_NUM_THREADS=1 python benchmarks/cost.py        # 10 minutes; writes benchmarks/cost.csv, each part when it is there

Seconds: one process trains an epoch of each method in turn, five rounds after one to warm up; each epoch is divided by that of hard labels in its round. They are seconds of the processor on one thread, so that
other programs on the machine count little. An epoch is training and validation, of small_cnn on BrainRegions at 32 px (20 images a region to train on, 20 to validate), with reading the images.
Memory: a process of its own for each method and repeat, the methods in turn; the peak of its resident memory in an epoch.
LS+ and Tf-KD_self need a network that was trained with hard labels before: that training is not counted."""
import resource, subprocess, sys, time
from pathlib import Path
import pandas as pd, torch

here = Path(__file__).parent
rounds,repeats = 5,2
in_memory = ['hard','ls','tfkd_reg','tfkd_self','ols']  # the paper's four, and the one that keeps a second network

def lists():
    from ols_fastai.data import list_dls
    from ols_fastai.datasets import brain_regions
    src = brain_regions()
    return list_dls(src/'train.csv', src/'valid.csv', src/'test.csv', size=32, n_per_class=20, seed=0, num_workers=0)

def learner(dls, spec, baseline=None):
    "A silent learner with fresh weights"
    from fastai.basics import Learner, L, noop
    from fastai.callback.channelslast import ChannelsLast
    from fastai.callback.progress import ProgressCallback
    from ols_fastai.models import create_model
    from ols_fastai.rivals import methods
    torch.manual_seed(0)
    m = methods[spec]
    loss,cb = m.make(**({'baseline': baseline} if m.needs_baseline else {}))
    learn = Learner(dls, create_model('small_cnn', len(dls.vocab)), loss_func=loss, cbs=[ChannelsLast(), *L(cb)])
    learn.remove_cb(ProgressCallback); learn.logger,learn.create_mbar = noop,False
    return learn

def seconds():
    "A row for each method and round"
    from ols_fastai.rivals import methods
    dls = lists()
    base = learner(dls, 'hard')
    base.fit(1, 1e-3)
    learners = {o: learner(dls, o, base) for o in methods}
    for r in range(rounds+1):
        took = {}
        for name,learn in learners.items():
            start = time.process_time()
            learn.fit(1, 1e-3)
            took[name] = time.process_time()-start
        if r: yield from (dict(method=k, what='seconds', repeat=r, value=v, ratio=v/took['hard']) for k,v in took.items())

def peak(spec):
    "Peak of this process's resident memory in MiB"
    from ols_fastai.rivals import methods
    dls = lists()
    base = None
    if methods[spec].needs_baseline:
        base = learner(dls, 'hard')
        base.fit(1, 1e-3)
    learner(dls, spec, base).fit(1, 1e-3)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def memory():
    for r in range(1, repeats+1):
        took = {}
        for name in in_memory:
            out = subprocess.run([sys.executable, '-W', 'ignore', __file__, name], capture_output=True, text=True, check=True).stdout
            took[name] = float(out.split('PEAK')[1])
        yield from (dict(method=k, what='peak MiB', repeat=r, value=v, ratio=v/took['hard']) for k,v in took.items())

if __name__=='__main__':
    torch.set_num_threads(1)
    if len(sys.argv)>1: print('PEAK', peak(sys.argv[1]))
    else:
        from ols_fastai.files import write_csv
        from ols_fastai.report import versions
        rows = []
        for source in (seconds(), memory()):
            rows += source
            df = pd.DataFrame(rows)
            write_csv(df.assign(versions=str(versions())), here/'cost.csv')
        print(df.groupby(['what','method'], sort=False)[['value','ratio']].agg(['median','min','max']).round(3).to_string())
