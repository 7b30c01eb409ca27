"""The paper's comparison at a size that a CPU can run: three families of networks, two data sets, four ways to train, each at its defaults and tuned, 5 seeds.

    OMP_NUM_THREADS=1 python benchmarks/paper.py run ../shared/data/mednist     # hours; goes on where it was stopped
    ... run ../shared/data/mednist small_vgg                                    # one network alone, so that several can run side by side
    python benchmarks/paper.py table                                            # paper.csv, of the seeds that are complete

BrainRegions: 30 training images a region, 32 px, 10 epochs. MedNIST: 10 training images a class, 20 a class to validate, 32 px, 30 epochs.
Label smoothing, Tf-KD and OLS get the same budget of three settings; tuned is the one with the least NLL on the validation images, seed by seed."""
import sys
from pathlib import Path
import pandas as pd, torch
from ols_fastai.calibration.metrics import summary_metrics, nll
from ols_fastai.core import load_tensors, write_csv
from ols_fastai.data.splits import sample_per_class
from ols_fastai.data.datasets import brain_regions
from ols_fastai.compare.comparison import compare
from ols_fastai.core import package_versions
from ols_fastai.calibration.scaling import apply_temperature, entropy_temperature, fit_entropy_temperature, fit_temperature

here = Path(__file__).parent
nets = ['small_resnet','small_mobilenet','small_vgg']
grid = {'LS': [f'ls:eps={o}' for o in (.03,.1,.2)], 'Tf-KD': [f'tfkd_reg:a={o}' for o in (.1,.3,.5)], 'OLS': [f'ols:alpha={o}' for o in (.3,.5,.8)]}
default = {'hard':'hard', 'LS':'ls:eps=0.1', 'Tf-KD':'tfkd_reg:a=0.1', 'OLS':'ols:alpha=0.5'}
seeds = 5

def regimes(mednist):
    "Arguments of `compare` for each data set"
    src = brain_regions()
    small = dict(size=32, num_workers=0)
    out = {'BrainRegions': dict({o: src/f'{o}.csv' for o in ('train','valid','test')}, n_per_class=30, epochs=10, **small)}
    src = Path(mednist).resolve()
    valid = here/'runs/paper_mednist_valid.csv'
    valid.parent.mkdir(exist_ok=True)
    write_csv(sample_per_class(pd.read_csv(src/'mednist_val.csv'), 20, 0), valid)  # who has 60 images to train on has no 600 to validate on
    out['MedNIST'] = dict(train=src/'mednist_train.csv', valid=valid, test=src/'mednist_test.csv', root=src.parent, n_per_class=10, epochs=30, bs=20, **small)
    return out

def folder(data, arch): return here/'runs'/'paper'/f'{data}-{arch}'

def run(mednist, *archs):
    for n in range(1, seeds+1):  # seed by seed, so that what is there at any time is a whole comparison of fewer seeds
        for data,args in regimes(mednist).items():
            for arch in archs or nets: compare(**args, arch=arch, out=folder(data, arch), methods=['hard', *sum(grid.values(), [])], seeds=n)

def rows(out, seed):
    "The methods of one network and seed, as trained, after one temperature, and after one by entropy"
    def load(spec): return load_tensors(out/'runs'/f"{spec.replace(':', '_')}-{seed}.safetensors")
    tuned = {f'{k} tuned': min(v, key=lambda o: nll(*(load(o)[0][p] for p in ('valid_preds','valid_targs')))) for k,v in grid.items()}
    for method,spec in {**default, **tuned}.items():
        t,info = load(spec)
        valid = t['valid_preds'],t['valid_targs']
        for scaled,T in (('none',1.), ('temperature',fit_temperature(*valid)), ('entropy',entropy_temperature(t['preds'], *fit_entropy_temperature(*valid)))):
            yield dict(method=method, spec=spec, seed=seed, scaled=scaled, T=float(torch.as_tensor(T).mean()), **summary_metrics(apply_temperature(t['preds'], T), t['targs']), seconds=info['seconds'])

def table():
    n = 1+3*len(grid)
    out = []
    for fn in sorted((here/'runs/paper').glob('*-*')):
        data,arch = fn.name.split('-')
        done = [o for o in range(seeds) if len(list((fn/'runs').glob(f'*-{o}.safetensors')))==n]
        out += [dict(data=data, arch=arch, **r) for seed in done for r in rows(fn, seed)]
    return pd.DataFrame(out).assign(versions=str(package_versions()))

if __name__=='__main__':
    if sys.argv[1]=='run': run(*sys.argv[2:])
    else:
        write_csv(table(), here/'paper.csv')
        print(table().groupby(['data','arch','scaled','method'], sort=False)[['Top-1 error %','Top-5 error %','NLL','ECE (15 bins)','mean confidence','T']].mean().round(4).to_string())
