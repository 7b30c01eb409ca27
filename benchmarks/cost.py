"""What an epoch of each method takes, in seconds and in memory, against hard labels in the same run.

    OMP_NUM_THREADS=1 python benchmarks/cost.py             # 15 minutes; writes benchmarks/cost.csv after each round, and goes on where it was stopped; remove the file to measure all anew
    OMP_NUM_THREADS=1 python benchmarks/cost.py memory      # one part alone, `seconds` or `memory`; the other's rows stay

Seconds: one process trains an epoch of each method in turn, five rounds after one to warm up; each epoch is divided by that of hard labels in its round. They are seconds of the processor on one thread, so that
other programs on the machine count little. An epoch is training and validation, of small_cnn on BrainRegions at 32 px (20 images a region to train on, 20 to validate), with reading the images.
Memory: a process of its own for each method and repeat, the methods in turn; the peak of its resident memory in an epoch.
LS+ and Tf-KD_self need a network that was trained with hard labels before: that training is not counted."""
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
    "A silent learner with fresh weights"
    from fastai.basics import Learner, L, noop
    from fastai.callback.channelslast import ChannelsLast
    from fastai.callback.progress import ProgressCallback
    from ols_fastai.train.models import create_model
    from ols_fastai.train.methods import METHODS
    torch.manual_seed(0)
    m = METHODS[spec]
    loss,cb = m.make(**({'baseline': baseline} if m.needs_baseline else {}))
    learn = Learner(dls, create_model('small_cnn', len(dls.vocab)), loss_func=loss, cbs=[ChannelsLast(), *L(cb)])
    learn.remove_cb(ProgressCallback); learn.logger,learn.create_mbar = noop,False
    return learn

def seconds(todo):
    "For each round of `todo` its number, and what each method took"
    from ols_fastai.train.methods import METHODS
    dls = lists()
    base = learner(dls, 'hard')
    base.fit(1, 1e-3)
    learners = {o: learner(dls, o, base) for o in METHODS}
    for r in (0,*todo):
        took = {}
        for name,learn in learners.items():
            start = time.process_time()
            learn.fit(1, 1e-3)
            took[name] = time.process_time()-start
        if r: yield r,took

def peak(spec):
    "Peak of this process's resident memory in MiB"
    from ols_fastai.train.methods import METHODS
    dls = lists()
    base = None
    if METHODS[spec].needs_baseline:
        base = learner(dls, 'hard')
        base.fit(1, 1e-3)
    learner(dls, spec, base).fit(1, 1e-3)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def memory(todo):
    "For each repeat of `todo` its number, and each method's peak in MiB"
    from ols_fastai.train.methods import METHODS
    for r in todo:
        outs = {o: subprocess.run([sys.executable, '-W', 'ignore', __file__, 'peak', o], capture_output=True, text=True, check=True).stdout for o in METHODS}
        yield r,{k: float(v.split('PEAK')[1]) for k,v in outs.items()}

parts = {'seconds': ('seconds',rounds,seconds), 'memory': ('peak MiB',repeats,memory)}

def go_on(df, what, n, measure, made, methods):
    "The rows with those of one part that are missing added, after each round. Kept are rounds that have all methods and were made with the same versions"
    whole = df[(df.what==what) & (df.versions==made)].groupby('repeat').method.agg(set)
    done = [r for r,o in whole.items() if o==set(methods)]
    df = df[(df.what!=what) | ((df.versions==made) & df.repeat.isin(done))]
    todo = [o for o in range(1, n+1) if o not in done]
    for r,took in measure(todo) if todo else ():
        df = pd.concat([df, pd.DataFrame([dict(method=k, what=what, repeat=r, value=v, ratio=v/took['hard'], versions=made) for k,v in took.items()])], ignore_index=True)
        yield df

if __name__=='__main__':
    torch.set_num_threads(1)
    if sys.argv[1:2]==['peak']: print('PEAK', peak(sys.argv[2]))
    else:
        from ols_fastai.core import write_csv
        from ols_fastai.core import package_versions
        from ols_fastai.train.methods import METHODS
        fn = here/'cost.csv'
        df = pd.read_csv(fn) if fn.exists() else pd.DataFrame(columns=['method','what','repeat','value','ratio','versions'])
        for part in sys.argv[1:] or parts:
            for more in go_on(df, *parts[part], str(package_versions()), methods): write_csv(df := more, fn)
        print(df.groupby(['what','method'], sort=False)[['value','ratio']].agg(['median','min','max']).round(3).to_string())
