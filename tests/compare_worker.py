"A small comparison: compare_worker.py DATA OUT [KILL_AT_BATCH]; kills itself where told."
import os, signal, sys
from pathlib import Path
from ols_fastai import experiment
from ols_fastai.compare.comparison import compare

methods = ['hard','ols:momentum=0.3','cpls','tfkd_self','mixup']

class Killed(experiment._Advance):
    n = 0
    def after_batch(self):
        Killed.n += 1
        if Killed.n==kill_at: os.kill(os.getpid(), signal.SIGKILL)

if __name__=='__main__':
    data,out = map(Path, sys.argv[1:3])
    kill_at = int(sys.argv[3]) if len(sys.argv)>3 else 0
    experiment._Advance = Killed
    if int(os.environ.get('WORLD_SIZE', 1))>1:
        import distrib_worker  # noqa: F401 its gather is for the CPU, fastai's goes through .cuda()
        methods = ['hard','ols']
    compare(**{o: data/f'{o}.csv' for o in ('train','valid','test')}, out=out, methods=methods, arch='small_cnn', epochs=3, bs=8, size=16, crop=.8, num_workers=0)
