"A comparison that is killed and started again ends as if nothing had happened; two processes share one."
import os, signal, subprocess, sys
from pathlib import Path
import cv2, numpy as np, pandas as pd, pytest, torch
from ols_fastai.core import load_tensors
from ols_fastai.compare.comparison import compare

here = Path(__file__).parent

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Three classes of noisy stripes, 8 images each to train on"
    path,rng = tmp_path_factory.mktemp('stripes'),np.random.default_rng(0)
    for split,n in dict(train=8, valid=4, test=4).items():
        rows = []
        for k in range(3):
            for i in range(n):
                a = rng.integers(0, 120, (16,16)).astype(np.uint8)
                a[::k+2] += 100
                fn = f'{split}_{k}_{i}.png'
                cv2.imwrite(str(path/fn), a)
                rows.append((fn, f'every {k+2}'))
        pd.DataFrame(rows, columns=['filename','label']).to_csv(path/f'{split}.csv', index=False)
    return path

def run(*args, launcher=(), **env):
    return subprocess.run([sys.executable, *launcher, str(here/'compare_worker.py'), *map(str, args)], cwd=here, capture_output=True, text=True, timeout=300,
                          env={**os.environ, 'OMP_NUM_THREADS':'1', 'CUDA_VISIBLE_DEVICES':'', **env})

def figures(out): return pd.read_csv(out/'results.csv').drop(columns='seconds')

@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    r = run(data, out); assert r.returncode==0, r.stderr
    return out

# 3 batches an epoch, 9 a run, 6 runs: in the second epoch of the first run, in the last of the second, in the third run, in the fifth
@pytest.mark.parametrize('kill_at', [5, 17, 22, 44, 50])
def test_killed_comparison_ends_as_an_uninterrupted_one(data, whole, tmp_path, kill_at):
    r = run(data, tmp_path, kill_at); assert r.returncode==-signal.SIGKILL, r.stderr
    n_done = (kill_at-1)//9
    kept = {o.name: o.stat().st_mtime_ns for o in (tmp_path/'runs').iterdir()}
    assert len(kept)==n_done and [o.suffix for o in (tmp_path/'unfinished').iterdir()]==['.pt']
    epoch = torch.load(next((tmp_path/'unfinished').iterdir()), weights_only=True)['epoch']
    assert epoch==(kill_at-1)%9//3-1
    r = run(data, tmp_path); assert r.returncode==0, r.stderr
    pd.testing.assert_frame_equal(figures(tmp_path), figures(whole))
    assert all((tmp_path/'runs'/o).stat().st_mtime_ns==t for o,t in kept.items()), 'finished runs are not repeated'
    for fn in (whole/'runs').iterdir():
        a,b = load_tensors(fn)[0],load_tensors(tmp_path/'runs'/fn.name)[0]
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert not list((tmp_path/'unfinished').iterdir())

def test_a_damaged_or_foreign_unfinished_run_is_named(data, whole, tmp_path):
    lists = {o: data/f'{o}.csv' for o in ('train','valid','test')}
    args = dict(**lists, out=tmp_path, methods=['hard'], arch='small_cnn', epochs=3, bs=8, size=16, crop=.8, num_workers=0)
    r = run(data, tmp_path, 5); assert r.returncode==-signal.SIGKILL, r.stderr
    fn = tmp_path/'unfinished/hard-0.pt'
    with pytest.raises(ValueError, match='epochs was 3 and is now 4'): compare(**{**args,'epochs':4})
    atomic_write = fn.read_bytes()
    fn.write_bytes(atomic_write[:len(atomic_write)//2])
    with pytest.raises(ValueError, match='hard-0.pt is damaged .*remove it'): compare(**args)
    fn.unlink()
    r = run(data, tmp_path); assert r.returncode==0, r.stderr  # in a process like that of `whole`: with other threads sums come in another order
    pd.testing.assert_frame_equal(figures(tmp_path), figures(whole))

def test_two_processes_share_a_comparison(data, tmp_path):
    r = run(data, tmp_path, launcher=('-m','torch.distributed.run','--standalone','--nproc_per_node','2'), ACCELERATE_USE_CPU='true')
    assert r.returncode==0, r.stderr[-3000:]
    f = figures(tmp_path)
    assert len(f)==4 and r.stderr.count('hard labels, seed 0')==1
    preds,targs = (load_tensors(tmp_path/'runs/ols-0.safetensors')[0][o] for o in ('preds','targs'))
    assert preds.shape==(12,3) and torch.bincount(targs).tolist()==[4,4,4]
    r = run(data, tmp_path/'alone'); assert r.returncode==0, r.stderr   # the gradient of one process with batches of 8 is another
    assert not torch.equal(load_tensors(tmp_path/'alone/runs/hard-0.safetensors')[0]['preds'], load_tensors(tmp_path/'runs/hard-0.safetensors')[0]['preds'])
