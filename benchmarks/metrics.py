"""What the measures of ols_fastai.calibration.metrics take at the size of RadImageNet, and against others on the same arrays.

    nice python benchmarks/metrics.py          # 2 minutes on an idle core; writes benchmarks/metrics.csv
    nice python benchmarks/metrics.py peers    # that table again, the others as they were

Three tables in one file (column `what`), each of them in a process of its own. Seconds are of processor time of one thread, which others at work on the machine do not change much.
scale      1.35 M x 165 fp32 predictions: every measure, the predictions read once (`sample_stats`) and read anew by each measure; seconds, and peak resident memory over that with the predictions loaded.
bootstrap  1,000 draws of 100,000 x 165: `summary_metrics` by sample, by patient, paired, and with every measure that works on `SampleStats`.
peers      100,000 x 165: seconds (best of 5, checks of the input included on both sides), ratio of theirs to ours, difference of the figures. Definitions are the same but for: a bin holds its upper edge here
           and in scikit-learn, its lower one in torchmetrics and netcal, which these predictions do not meet; torchmetrics adds in fp32; relplot finds the width in steps of 0.001.
           scikit-learn's `log_loss` gets fp64, since it cuts fp32 off at 1e-7 (and fp64 at 2e-16, we at 1e-38; these predictions have none so small). scikit-learn's bins, netcal's adaptive bins and relplot take the confidence and whether it is right, which then is part of their time.
"""
import csv, json, os, resource, subprocess, sys, time, warnings
from pathlib import Path
os.environ['OMP_NUM_THREADS'] = '1'  # before torch
import numpy as np, torch
from ols_fastai.calibration.metrics import *
from ols_fastai.calibration.resampling import *
from ols_fastai.calibration.curves import *
from ols_fastai.calibration.classes import *

here,K = Path(__file__).parent,165
BINNED = [ece, adaptive_ece, mce, rms_ce, debiased_ce]
PLAIN  = [nll, brier, top_k_error, top_5_error, mean_confidence, smooth_ece, over_confidence, under_confidence, aurc, e_aurc, confidence_auroc]
WHOLE  = [classwise_ece, brier_decomposition]

def made(N, seed=0):
    "Predictions of an over-confident network, right in 70 %, made in blocks so that the peak of memory is theirs"
    g,p = torch.Generator().manual_seed(seed),torch.empty(N, K)
    for o in p.split(10_000): o.uniform_(generator=g).pow_(30).add_(1e-9).div_(o.sum(1, keepdim=True))  # none below 1e-10
    return p,torch.where(torch.rand(N, generator=g)<.7, p.argmax(1), torch.randint(0, K, (N,), generator=g))

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024**2
def took(f, n=1):
    secs = []
    for _ in range(n): start = time.process_time(); out = f(); secs.append(time.process_time()-start)
    return out,min(secs)

def scale():
    p,t = made(N:=1_350_000)
    start = peak()
    def once(): s = sample_stats(p, t); return [f(s) for f in BINNED+PLAIN+WHOLE+[reliability_table,risk_coverage,summary_metrics,consistency_band]]
    _,secs = took(once)
    yield dict(name='all measures, read once', N=N, seconds=secs, peak_over_input_GiB=peak()-start)
    _,secs = took(lambda: sample_stats(p, t))
    yield dict(name='sample_stats', N=N, seconds=secs)
    _,secs = took(lambda: [f(p, t) for f in BINNED+PLAIN+WHOLE])
    yield dict(name='all measures, each reads anew', N=N, seconds=secs, peak_over_input_GiB=peak()-start)

def boot():
    p,t = made(N:=100_000)
    q,groups = (p+1e-6).log().mul(.7).softmax(1),np.arange(N)//10
    for name,f in {'summary_metrics': lambda: bootstrap(summary_metrics, p, t), 'summary_metrics, 10,000 patients': lambda: bootstrap(summary_metrics, p, t, groups=groups),
                   'summary_metrics, paired': lambda: paired_bootstrap(summary_metrics, p, q, t), f'{len(BINNED+PLAIN)} measures': lambda: bootstrap(BINNED+PLAIN, p, t)}.items():
        _,secs = took(f)
        yield dict(name=f'1,000 draws of {name}', N=N, seconds=secs)

def peers():
    import sklearn.metrics as skm, netcal.metrics as nc, relplot
    from sklearn.calibration import calibration_curve
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
    p,t = made(N:=100_000)
    pn,tn = p.numpy(),t.numpy()
    def first(): return pn.max(1).astype(float),pn.argmax(1)==tn
    def curve(strategy):
        conf,hit = first()
        acc,mean = calibration_curve(hit, conf, n_bins=15, strategy=strategy)
        n = np.bincount(np.searchsorted((np.linspace(0, 1, 16) if strategy=='uniform' else np.percentile(conf, np.linspace(0, 100, 16)))[1:-1], conf), minlength=15)
        return abs(acc-mean)@n[n>0]/N
    tm = lambda norm: (lambda: multiclass_calibration_error(p, t, K, 15, norm).item())
    for f,theirs in {ece: dict(torchmetrics=tm('l1'), netcal=lambda: nc.ECE(15).measure(pn, tn), **{'scikit-learn': lambda: curve('uniform')}),
                     mce: dict(torchmetrics=tm('max'), netcal=lambda: nc.MCE(15).measure(pn, tn)), rms_ce: dict(torchmetrics=tm('l2')),
                     adaptive_ece: dict(netcal=lambda: nc.ECE(15, equal_intervals=False).measure(*first()), **{'scikit-learn': lambda: curve('quantile')}),
                     top_5_error: dict(torchmetrics=lambda: 1-multiclass_accuracy(p, t, K, average='micro', top_k=5).item(), **{'scikit-learn': lambda: 1-skm.top_k_accuracy_score(tn, pn, k=5, labels=range(K))}),
                     nll: {'scikit-learn': lambda: skm.log_loss(tn, pn.astype(float), labels=range(K))}, brier: {'scikit-learn': lambda: skm.brier_score_loss(tn, pn, labels=range(K))},
                     confidence_auroc: {'scikit-learn': lambda: skm.roc_auc_score(first()[1], first()[0])}, smooth_ece: dict(relplot=lambda: relplot.smECE(*first()))}.items():
        v,secs = took(lambda: f(p, t), 5)
        for name,g in theirs.items():
            u,other = took(g, 5)
            yield dict(name=f.__name__, N=N, seconds=secs, peer=name, peer_seconds=other, ratio=other/secs, value=v, difference=abs(u-v))

def main(again):
    from importlib.metadata import version
    versions = {o: version(o) for o in ('ols_fastai','torch','numpy','pandas','scipy','scikit-learn','torchmetrics','netcal','relplot')}
    keys = 'what name N seconds peak_over_input_GiB peer peer_seconds ratio value difference'.split()
    old = list(csv.DictReader((here/'metrics.csv').open())) if again else []
    rows = [r for r in old if r['what'] not in again]
    for what in again or ('scale','bootstrap','peers'):
        out = subprocess.run([sys.executable, '-W', 'ignore', __file__, '--here', what], stdout=subprocess.PIPE, text=True, check=True).stdout
        rows += [dict(what=what, **json.loads(o[4:])) for o in out.splitlines() if o.startswith('ROW ')]
    with (here/'metrics.csv').open('w', newline='') as f:
        w = csv.DictWriter(f, [*keys,'versions']); w.writeheader()
        for r in rows: w.writerow({'versions': versions, **{k: (f'{v:.3g}' if isinstance(v, float) and k!='value' else v) for k,v in r.items()}}); print(r)

if __name__=='__main__':
    if '--here' not in sys.argv: main(sys.argv[1:])
    else:
        torch.set_num_threads(1); warnings.filterwarnings('ignore')
        for r in {'scale': scale, 'bootstrap': boot, 'peers': peers}[sys.argv[2]](): print('ROW', json.dumps({k: float(v) if isinstance(v, np.floating) else v for k,v in r.items()}), flush=True)
