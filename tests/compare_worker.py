"A small comparison: compare_worker.py DATA OUT [KILL_AT_BATCH [MONITOR]]; kills itself where told."
import json, os, signal, sys
from pathlib import Path
from ols_fastai.compare import runs
from ols_fastai.compare.comparison import compare

methods = ['hard','ols:momentum=0.3','ls_plus','cpls','tfkd_self','mixup']

class Killed(runs._Advance):
    n = 0
    def after_batch(self):
        Killed.n += 1
        if Killed.n==kill_at: os.kill(os.getpid(), signal.SIGKILL)

if __name__=='__main__':
    data,out = map(Path, sys.argv[1:3])
    kill_at = int(sys.argv[3]) if len(sys.argv)>3 else 0
    more = dict(monitor=sys.argv[4], patience=2, epochs=4) if len(sys.argv)>4 else dict(epochs=3)
    if len(sys.argv)>4: methods = ['ols']
    runs._Advance = Killed
    if int(os.environ.get('WORLD_SIZE', 1))>1: methods = ['hard','ols','tfkd_self']
    if 'METHODS' in os.environ: methods = os.environ['METHODS'].split(',')
    compare(**{o: data/f'{o}.csv' for o in ('train','valid','test')}, out=out, methods=methods, arch='small_cnn', bs=8, size=16,
            **{**dict(crop=float(os.environ.get('CROP', .8)), num_workers=0), **more, **json.loads(os.environ.get('SETTINGS', '{}'))})
