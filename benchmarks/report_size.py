"""A report on a large test set, section by section: seconds and the most memory so far.

    OMP_NUM_THREADS=1 python benchmarks/report_size.py [IMAGES CLASSES PATIENTS NETWORKS]  # writes report_size.csv
    OMP_NUM_THREADS=1 python benchmarks/report_size.py table [IMAGES CLASSES]   # adds a row: tables without intervals

Probabilities are made up: true classes are drawn from softmax, and each network is over-confident by another factor;
a tenth as many validation images. Patients are drawn at random. Without arguments 135,000 images, 165 classes, 13,000
patients and one network: RadImageNet's test set; `table` takes 1,350,000 images, all of RadImageNet."""
import os, resource, sys, tempfile, time, warnings
import numpy as np, pandas as pd, torch
from pathlib import Path
from common import here, write_table
from ols_fastai.calibration import report
from ols_fastai.calibration.classes import class_table
from ols_fastai.calibration.interpretation import CalibrationInterpretation

def made(n, K, seed):
    g = torch.Generator().manual_seed(seed)
    z = 2*torch.randn(n, K, generator=g)
    return z,torch.multinomial(z.softmax(1), 1, generator=g)[:,0]

def networks(n, K, n_patients, n_networks):
    (z,targs),(valid_z,valid_targs) = made(n, K, 0),made(n//10, K, 1)
    patients = np.random.default_rng(0).integers(n_patients, size=n)
    items = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(n)], patient=patients))
    same = dict(targs=targs, valid_targs=valid_targs, vocab=[f'class {i}' for i in range(K)], items=items)
    def run(scale): return dict(same, preds=(scale*z).softmax(1), valid_preds=(scale*valid_z).softmax(1))
    return {f'network {i}': run(1.4-.2*i) for i in range(n_networks)}

def gigabytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20

def main(n=135_000, K=165, n_patients=13_000, n_networks=1):
    warnings.simplefilter('ignore')
    rows,make = [],report.make_section
    about = dict(images=n, classes=K, patients=n_patients, networks=n_networks)
    def add(section, start):
        rows.append(dict(about, section=section, seconds=round(time.time()-start, 1), peak_gb=round(gigabytes(), 2),
                         load=round(os.getloadavg()[0], 1)))
        write_table(pd.DataFrame(rows), 'report_size.csv')
        print(rows[-1], flush=True)
    def timed(R, title):
        start = time.time()
        out = make(R, title)
        add(title, start)
        return out
    report.make_section = timed
    runs,start = networks(n, K, n_patients, n_networks),time.time()
    with tempfile.TemporaryDirectory() as tmp:
        fn = report.calibration_report(runs, Path(tmp)/'report.html')
        add(f'all ({fn.stat().st_size/1e6:.1f} MB)', start)

def tables(n=1_350_000, K=165):
    "Seconds and memory of the two tables, all measures and each class, as they are made without draws"
    z,targs = made(n, K, 0)
    preds = z.mul_(1.4).softmax(1)
    del z
    about,start = dict(images=n, classes=K, patients=0, networks=1),time.time()
    interp = CalibrationInterpretation.from_preds(preds, targs)
    interp.table(n=0)
    class_table(preds, targs)
    row = dict(about, section='tables without intervals', seconds=round(time.time()-start, 1),
               peak_gb=round(gigabytes(), 2), load=round(os.getloadavg()[0], 1))
    before = pd.read_csv(here/'report_size.csv').drop(columns='versions')
    write_table(pd.concat([before[before.section!=row['section']], pd.DataFrame([row])]), 'report_size.csv')
    print(row)

if __name__=='__main__':
    args = sys.argv[1:]
    if args[:1]==['table']: tables(*map(int, args[1:]))
    else: main(*map(int, args))
