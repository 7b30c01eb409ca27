"""How often the statements of ols_fastai.calibration hold: of simulated data sets, whose truth is known, the share in which a 95 % interval held the truth, a calibrated network stayed in its band or region,
or a test at 5 % did not reject it.

    nice python benchmarks/validity.py            # 400 data sets of each kind; writes benchmarks/validity.csv
    nice python benchmarks/validity.py 50         # of 50 each

The same command goes on where it was stopped: kinds that are done stand in validity.csv.part, which becomes validity.csv at the end.

A data set has 600 images: `independent`, or of 60 patients with ten like images each, judged `by patient` or, to see what that is worth, `as independent`. Networks have 2, 14 or 165 classes and are calibrated by
construction (labels are drawn from their probabilities), over-confident (logits times 1.4), or calibrated and saturated (fp32 softmax rounds to 0 and 1). `said` is the number of data sets with a statement: a class in fewer
than 10 images, or patients, gets none. Bins, points of a curve and predicted classes count each on its own."""
import sys, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
from ols_fastai.core import with_versions, write_csv
from ols_fastai.calibration.metrics import *
from ols_fastai.calibration.resampling import *
from ols_fastai.calibration.chance import *
from ols_fastai.calibration.curves import *
from ols_fastai.calibration.classes import *

here,N = Path(__file__).parent,600
networks = {'calibrated': (2., 1.), 'over-confident': (2., 1.4), 'saturated': (25., 1.)}  # scale of the logits, and what they are multiplied by
MEANS = [top_k_acc,confidence_gap,nll,brier,debiased_ce,ece,confidence_auroc]
OF_A_CLASS = ['prevalence','sensitivity','specificity','PPV','AUROC','AUPRC','O/E','intercept','slope']

def made(n, K, network, seed, like=1):
    "Predictions and labels of `n` images, `like` of each kind together"
    scale,sharper = networks[network]
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n//like, K, generator=g)*scale
    t = torch.multinomial(z.softmax(1), 1, generator=g)[:,0]
    return (sharper*z).softmax(1).repeat_interleave(like, 0),t.repeat_interleave(like)

def truths(K, network):
    "What the intervals should hold, from many images"
    n = {2: 400_000, 14: 200_000, 165: 60_000}[K]
    p,t = made(n, K, network, seed=10**6)
    out = {m().name: m(p, t) for m in MEANS}
    out.update(macro_table(p, t).value)
    if K<165:
        out.update(class_table(p, t).loc[K//2, OF_A_CLASS])
        out['net benefit'] = net_benefit(p, t, K//2, [.2])['net benefit'][0]
    return out

def intervals(p, t, groups, seed, classes):
    "Name -> low and high end of every interval"
    K,out = p.shape[1],{}
    b = bootstrap(MEANS, p, t, groups=groups, n=200, seed=seed)
    for name,r in b.iterrows(): out[name] = (r.low,r.high)
    if not classes: return out
    for name,r in macro_table(p, t, groups=groups).iterrows(): out[name] = (r.low,r.high)
    if K<165:
        row = class_table(p, t, groups=groups).loc[K//2]
        for name in OF_A_CLASS: out[name] = (row[f'{name}_low'],row[f'{name}_high'])
        r = net_benefit(p, t, K//2, [.2], groups).iloc[0]
        out['net benefit'] = (r.low,r.high)
    return out

def within(low, x, high): return ((low-1e-9<=x) & (x<=high+1e-9)).tolist()

def null_statements(p, t, groups, seed):
    "Name -> bools: did a calibrated network stay where it should?"
    s,by = sample_stats(p, t),p.argmax(1).numpy()
    out = {f'test: {name}': [z<1.96] for name,z in calibration_test(s, groups=groups).z.abs().items()}
    band = consistency_band(s, n=300, seed=seed, groups=groups).query('count>0')
    out['band of a bin'] = within(band.band_low, band.accuracy, band.band_high)
    d,v = s.confidence-s.correct,s.confidence*(1-s.confidence)
    error = null_errors_by(d, v, by, groups)
    some = np.unique(by)
    out['gap of a predicted class'] = (abs(np.bincount(by, d))<=1.96*error+1e-9)[some].tolist()
    r = corp(s, groups=groups, n=100, seed=seed)
    out['CORP region'] = [bool(np.mean(within(r.low, r.frequency, r.high)))] if len(r)<2 else within(r.low, r.frequency, r.high)
    return out

def images_text(like): return 'independent' if like==1 else '60 patients of 10 alike'

def study(K, network, like, by, n_sets):
    "Rows of the table for one kind of data set. Single classes are judged on the over-confident network"
    truth,held = truths(K, network),{}
    for seed in range(n_sets):
        p,t = made(N, K, network, seed, like)
        groups = np.arange(N)//like if by=='by patient' else None
        for name,(low,high) in intervals(p, t, groups, seed, network=='over-confident').items():
            if np.isfinite(low+high): held.setdefault(f'interval: {name}', []).append([low<=truth[name]<=high])
        if network!='over-confident':
            for name,o in null_statements(p, t, groups, seed).items(): held.setdefault(name, []).append(o)
    for name,o in held.items():
        share = np.mean([x for one in o for x in one])
        yield dict(statement=name, K=K, network=network, images=images_text(like),
                   judged=by, held=round(float(share), 3), said=len(o), sets=n_sets)

def kinds():
    for network,Ks in (('over-confident',(2,14,165)), ('calibrated',(2,14,165)), ('saturated',(14,))):
        for K in Ks: yield from ((K, network, 1, 'as independent'), (K, network, 10, 'by patient'))
    yield 14,'calibrated',10,'as independent'

def main(n_sets):
    torch.set_num_threads(1); warnings.filterwarnings('ignore')
    part = here/'validity.csv.part'
    done = pd.read_csv(part).query('sets==@n_sets') if part.exists() else pd.DataFrame()
    for kind in kinds():
        of_kind = dict(zip(('K','network','images','judged'), (*kind[:2],images_text(kind[2]),kind[3])))
        if len(done) and (done[list(of_kind)]==list(of_kind.values())).all(axis=1).any(): continue
        rows = pd.DataFrame(study(*kind, n_sets))
        print(rows.to_string(), flush=True)
        done = pd.concat([done, rows])
        write_csv(done, part)
    write_csv(with_versions(done), here/'validity.csv')
    part.unlink()

if __name__=='__main__': main(int(sys.argv[1]) if len(sys.argv)>1 else 400)
