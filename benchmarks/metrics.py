"""What the measures of a network's calibration take at the size of RadImageNet, and against others on the same arrays.

    nice python benchmarks/metrics.py          # 2 minutes on an idle core; writes benchmarks/metrics.csv
    nice python benchmarks/metrics.py peers    # that table again, the others as they were

Three tables in one file (column `what`), each of them in a process of its own. Seconds are of processor time of one
thread, which others at work on the machine do not change much.

- scale: 1.35 M x 165 fp32 predictions: every measure, the predictions read once (`sample_stats`) and read by each
  measure again; seconds, and peak resident memory over that with the predictions loaded
- bootstrap: 1,000 draws of 100,000 x 165: `summary_metrics` by sample, by patient, paired, and with every measure that
  works on `SampleStats`
- peers: 100,000 x 165: seconds (best of 5, checks of the input included on both sides), ratio of theirs to ours,
  difference of the figures

Definitions are the same as the peers' but for: a bin holds its upper edge here and in scikit-learn, its lower one in
torchmetrics and netcal, which these predictions do not meet; torchmetrics adds in fp32; relplot finds the width in
steps of 0.001. scikit-learn's `log_loss` gets fp64, since it cuts fp32 off at 1e-7 (and fp64 at 2e-16, we at 1e-38;
these predictions have none so small). scikit-learn's bins, netcal's adaptive bins and relplot take the confidence and
whether it is right, which then is part of their time.
"""
import json, os, resource, subprocess, sys, time, warnings
from pathlib import Path
os.environ['OMP_NUM_THREADS'] = '1'  # before torch
import numpy as np, pandas as pd, torch
from ols_fastai.core import write_csv
from ols_fastai.calibration.metrics import *
from ols_fastai.calibration.resampling import *
from ols_fastai.calibration.chance import *
from ols_fastai.calibration.curves import *
from ols_fastai.calibration.classes import *

here,K = Path(__file__).parent,165
BINNED = [ece, adaptive_ece, mce, rms_ce, debiased_ce]
PLAIN  = [nll, brier, top_k_error, top_5_error, mean_confidence, smooth_ece, over_confidence, under_confidence, aurc,
          e_aurc, confidence_auroc]
WHOLE  = [classwise_ece, brier_decomposition]

def made(N, seed=0):
    "Predictions of an over-confident network, right in 70 %, made in blocks so that the peak of memory is theirs"
    g,p = torch.Generator().manual_seed(seed),torch.empty(N, K)
    for o in p.split(10_000):
        o.uniform_(generator=g).pow_(30).add_(1e-9)  # none below 1e-10
        o.div_(o.sum(1, keepdim=True))
    right = torch.rand(N, generator=g)<.7
    return p,torch.where(right, p.argmax(1), torch.randint(0, K, (N,), generator=g))

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024**2

def took(f, n=1):
    "What `f` gives, and the least of its seconds"
    secs = []
    for _ in range(n):
        start = time.process_time()
        out = f()
        secs.append(time.process_time()-start)
    return out,min(secs)

def scale():
    N = 1_350_000
    p,t = made(N)
    start = peak()
    def once():
        s = sample_stats(p, t)
        return [f(s) for f in BINNED+PLAIN+WHOLE+[reliability_table,risk_coverage,summary_metrics,consistency_band]]
    _,secs = took(once)
    yield dict(name='all measures, read once', N=N, seconds=secs, peak_over_input_GiB=peak()-start)
    _,secs = took(lambda: sample_stats(p, t))
    yield dict(name='sample_stats', N=N, seconds=secs)
    _,secs = took(lambda: [f(p, t) for f in BINNED+PLAIN+WHOLE])
    yield dict(name='all measures, each reads anew', N=N, seconds=secs, peak_over_input_GiB=peak()-start)

def boot():
    N = 100_000
    p,t = made(N)
    q,groups = (p+1e-6).log().mul(.7).softmax(1),np.arange(N)//10
    ways = {'summary_metrics': lambda: bootstrap(summary_metrics, p, t),
            'summary_metrics, 10,000 patients': lambda: bootstrap(summary_metrics, p, t, groups=groups),
            'summary_metrics, paired': lambda: paired_bootstrap(summary_metrics, p, q, t),
            f'{len(BINNED+PLAIN)} measures': lambda: bootstrap(BINNED+PLAIN, p, t)}
    for name,f in ways.items():
        _,secs = took(f)
        yield dict(name=f'1,000 draws of {name}', N=N, seconds=secs)

def binned_curve(conf, hit, strategy, n_bins=15):
    "ECE from scikit-learn's `calibration_curve`, which gives no counts"
    from sklearn.calibration import calibration_curve
    acc,mean = calibration_curve(hit, conf, n_bins=n_bins, strategy=strategy)
    edges = np.linspace(0, 1, n_bins+1) if strategy=='uniform' else np.percentile(conf, np.linspace(0, 100, n_bins+1))
    n = np.bincount(np.searchsorted(edges[1:-1], conf), minlength=n_bins)
    return abs(acc-mean)@n[n>0]/len(conf)

def others(p, t):
    "Measure -> package -> the same of that package"
    import sklearn.metrics as skm, netcal.metrics as nc, relplot
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
    pn,tn = p.numpy(),t.numpy()
    def first(): return pn.max(1).astype(float),pn.argmax(1)==tn
    def tm(norm): return lambda: multiclass_calibration_error(p, t, K, 15, norm).item()
    def top5(): return 1-multiclass_accuracy(p, t, K, average='micro', top_k=5).item()
    def auroc():
        conf,hit = first()
        return skm.roc_auc_score(hit, conf)
    return {
        ece: {'torchmetrics': tm('l1'),
              'netcal': lambda: nc.ECE(15).measure(pn, tn),
              'scikit-learn': lambda: binned_curve(*first(), 'uniform')},
        mce: {'torchmetrics': tm('max'), 'netcal': lambda: nc.MCE(15).measure(pn, tn)},
        rms_ce: {'torchmetrics': tm('l2')},
        adaptive_ece: {'netcal': lambda: nc.ECE(15, equal_intervals=False).measure(*first()),
                       'scikit-learn': lambda: binned_curve(*first(), 'quantile')},
        top_5_error: {'torchmetrics': top5,
                      'scikit-learn': lambda: 1-skm.top_k_accuracy_score(tn, pn, k=5, labels=range(K))},
        nll: {'scikit-learn': lambda: skm.log_loss(tn, pn.astype(float), labels=range(K))},
        brier: {'scikit-learn': lambda: skm.brier_score_loss(tn, pn, labels=range(K))},
        confidence_auroc: {'scikit-learn': auroc},
        smooth_ece: {'relplot': lambda: relplot.smECE(*first())}}

def peers():
    N = 100_000
    p,t = made(N)
    for f,theirs in others(p, t).items():
        v,secs = took(lambda: f(p, t), 5)
        for name,g in theirs.items():
            u,other = took(g, 5)
            yield dict(name=f.__name__, N=N, seconds=secs, peer=name, peer_seconds=other, ratio=other/secs,
                       value=v, difference=abs(u-v))

tables = {'scale': scale, 'bootstrap': boot, 'peers': peers}
columns = 'what name N seconds peak_over_input_GiB peer peer_seconds ratio value difference'.split()

def measured(what):
    "The rows of one table, of a process of its own"
    command = [sys.executable, '-W', 'ignore', __file__, '--here', what]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [dict(what=what, **json.loads(o[4:])) for o in out.splitlines() if o.startswith('ROW ')]

def written(k, v):
    "A figure as the table has it"
    if isinstance(v, float) and k!='value': return f'{v:.3g}'
    return v

def main(again):
    from importlib.metadata import version
    packages = ('ols_fastai','torch','numpy','pandas','scipy','scikit-learn','torchmetrics','netcal','relplot')
    versions = {o: version(o) for o in packages}
    fn,new = here/'metrics.csv',[]
    for what in again or tables:
        for row in measured(what): new.append({**{k: written(k, v) for k,v in row.items()}, 'versions': versions})
    old = pd.read_csv(fn, dtype=str) if again else pd.DataFrame()
    kept = old[~old.what.isin(again)] if again else old
    df = pd.concat([kept, pd.DataFrame(new)])[[*columns,'versions']]
    write_csv(df, fn)
    print(df.drop(columns='versions').to_string())

def show(what):
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    for row in tables[what](): print('ROW', json.dumps(row, default=float), flush=True)

if __name__=='__main__':
    if '--here' in sys.argv: show(sys.argv[2])
    else: main(sys.argv[1:])
