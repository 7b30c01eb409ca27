"""Programs in processes of their own, forked from one that has imported the package: a start takes no ten seconds.

They share its hash seed. So of two runs that must agree one is started afresh, by `subprocess`; so is what is tested
of imports, of warnings at the start, and of signals."""
import multiprocessing, os, random, runpy, sys
import multiprocessing.forkserver
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory
from unittest import mock

context = multiprocessing.get_context('forkserver')
context.set_forkserver_preload(['ols_fastai.all'])

def _become(program, args, cwd, env, streams):
    "What is left of this process is the program's"
    for fd,fn in zip((1,2), streams): os.dup2(os.open(fn, os.O_WRONLY|os.O_CREAT|os.O_APPEND), fd)
    os.environ.clear()
    os.environ.update(env)
    if cwd: os.chdir(cwd)
    import numpy as np, torch
    for seed in (random.seed,np.random.seed,torch.seed): seed()
    if not Path(program).suffix=='.py':
        sys.argv = ['-c',*args]
        return exec(compile(program, '<string>', 'exec'), {'__name__': '__main__'})
    sys.argv = [program,*args]
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name='__main__')

def run_forked(program, *args, cwd=None, env=None, timeout=300):
    "`subprocess.run([sys.executable, program, *args])` of a file, or of code"
    # with one thread, as every process that it forks
    with mock.patch.dict(os.environ, OMP_NUM_THREADS='1'): multiprocessing.forkserver.ensure_running()
    with TemporaryDirectory() as tmp:
        streams = [Path(tmp)/o for o in ('out','err')]
        how = str(program),[str(o) for o in args],cwd,dict(env or os.environ),streams
        p = context.Process(target=_become, args=how)
        p.start()
        p.join(timeout)
        if p.is_alive():
            p.kill()
            raise TimeoutExpired(program, timeout)
        texts = [o.read_text(errors='surrogateescape') for o in streams]
    return CompletedProcess([program,*args], p.exitcode, *texts)
