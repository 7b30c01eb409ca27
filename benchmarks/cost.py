"""What an epoch of each method takes, in seconds and in memory, against hard labels in the same run.

    OMP_NUM_THREADS=1 python benchmarks/cost.py  # 15 minutes; remove cost.csv to measure all again
    OMP_NUM_THREADS=1 python benchmarks/cost.py memory  # one part alone, `seconds` or `memory`; the other's rows stay

Writes cost.csv after each round, and goes on where it was stopped.

Seconds: one process trains an epoch of each method in turn, five rounds after one
to warm up; each epoch is divided by that of hard labels in its round. They are seconds of the processor on one
thread, so that other programs on the machine count little. An epoch is training and validation, of small_cnn on
BrainRegions at 32 px (20 images a region to train on, 20 to validate), with reading the images. Memory: a process of
its own for each method and repeat, the methods in turn; the peak of its resident memory in an epoch. LS+ and
Tf-KD_self need a network that was trained with hard labels before: that training is not counted."""
import resource, subprocess, sys, time
from pathlib import Path
import pandas as pd, torch

here = Path(__file__).parent
rounds,repeats = 5,3

def lists():
    from ols_fastai.data.loaders import image_dls
    from ols_fastai.data.datasets import brain_regions
    src = brain_regions()
    return image_dls(src/'train.csv', src/'valid.csv', src/'test.csv', size=32, n_per_class=20, seed=0, num_workers=0)

def learner(dls, spec, baseline=None):
    "A learner with fresh weights"
    from fastai.basics import Learner, L
    from fastai.callback.channelslast import ChannelsLast
    from ols_fastai.train.models import create_model
    from ols_fastai.train.methods import METHODS
    torch.manual_seed(0)
    m = METHODS[spec]
    loss,cb = m.make(**({'baseline': baseline} if m.needs_baseline else {}))
    return Learner(dls, create_model('small_cnn', len(dls.vocab)), loss_func=loss, cbs=[ChannelsLast(), *L(cb)])

def epoch(learn):
    from ols_fastai.core import quiet_learner
    with quiet_learner(learn): learn.fit(1, 1e-3)

def seconds(todo):
    "For each round of `todo` its number, and what each method took"
    from ols_fastai.train.methods import METHODS
    dls = lists()
    base = learner(dls, 'hard')
    epoch(base)
    learners = {o: learner(dls, o, base) for o in METHODS}
    for r in (0,*todo):
        took = {}
        for name,learn in learners.items():
            start = time.process_time()
            epoch(learn)
            took[name] = time.process_time()-start
        if r: yield r,took

def peak(spec):
    "Peak of this process's resident memory in MiB"
    from ols_fastai.train.methods import METHODS
    dls = lists()
    base = None
    if METHODS[spec].needs_baseline:
        base = learner(dls, 'hard')
        epoch(base)
    epoch(learner(dls, spec, base))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def peak_of(spec):
    "The same, of a process of its own"
    command = [sys.executable, '-W', 'ignore', __file__, 'peak', spec]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(out.split('PEAK')[1])

def memory(todo):
    "For each repeat of `todo` its number, and each method's peak in MiB"
    from ols_fastai.train.methods import METHODS
    for r in todo: yield r,{o: peak_of(o) for o in METHODS}

parts = {'seconds': ('seconds',rounds,seconds), 'memory': ('peak MiB',repeats,memory)}

def go_on(df, what, n, measure, made, methods):
    """The rows with those of one part that are missing added, after each round.

    Kept are rounds that have all methods and were made with the same versions"""
    same = (df.what==what) & (df.versions==made)
    whole = df[same].groupby('repeat').method.agg(set)
    done = [r for r,o in whole.items() if o==set(methods)]
    df = df[(df.what!=what) | (same & df.repeat.isin(done))]
    todo = [o for o in range(1, n+1) if o not in done]
    for r,took in measure(todo) if todo else ():
        new = pd.DataFrame([dict(method=k, what=what, repeat=r, value=v, ratio=v/took['hard']) for k,v in took.items()])
        df = pd.concat([df, new.assign(versions=made)], ignore_index=True)
        yield df

def main(wanted):
    from ols_fastai.core import package_versions, write_csv
    from ols_fastai.train.methods import METHODS
    fn,made = here/'cost.csv',str(package_versions())
    df = pd.read_csv(fn) if fn.exists() else pd.DataFrame(columns=['method','what','repeat','value','ratio','versions'])
    for part in wanted or parts:
        for more in go_on(df, *parts[part], made, METHODS):
            df = more
            write_csv(df, fn)
    print(df.groupby(['what','method'], sort=False)[['value','ratio']].agg(['median','min','max']).round(3).to_string())

if __name__=='__main__':
    torch.set_num_threads(1)
    if sys.argv[1:2]==['peak']: print('PEAK', peak(sys.argv[2]))
    else: main(sys.argv[1:])
