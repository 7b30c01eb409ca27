"Two processes on the CPU under fastai's `distrib_ctx`."
import os, subprocess, sys
from pathlib import Path
import torch
from conftest import K, toy_data
from ols_fastai.train.ols import OLSCallback
from ols_fastai.calibration.temperature import fit_temperature
from ols_fastai.train.soft_labels import SoftLabels

def test_two_processes_make_the_soft_labels_of_one(tmp_path):
    here = Path(__file__).parent
    r = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(here/'distrib_worker.py'), str(tmp_path)],
                       cwd=here, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1', 'CUDA_VISIBLE_DEVICES':'', 'ACCELERATE_USE_CPU':'true'}, timeout=300)
    assert r.returncode==0, r.stderr[-3000:]
    a,b = (torch.load(tmp_path/f'{o}.pt') for o in (0,1))
    assert a['world']==b['world']==2 and a['history']==b['history']
    seen = [{int(t) for _,_,y in o['batches'] for t in y} for o in (a,b)]
    assert seen[0]-seen[1] and seen[1]-seen[0], 'some classes have to be seen by one process alone'
    for epoch in (0,1):
        # 101 samples for two processes: fastai gives the last of the second process twice
        p,y = (torch.cat([o[i] for r in (a,b) for o in r['batches'] if o[0]==epoch]) for i in (1,2))
        assert len(y)==102 and {len(o[2]) for o in a['batches']}=={10,1}
        one = SoftLabels(K, correct_only=False)
        one.accumulate(p[:-1], y[:-1])
        assert a['history'][epoch]['n_correct']==one.count.sum()==101
        one.update()
        for r in (a,b): torch.testing.assert_close(r['S'][epoch], one.S, atol=1e-6, rtol=0)
    assert torch.equal(OLSCallback.load(tmp_path/'ols.safetensors').S, a['S'][1])
    # of the validation images too each counts once, whoever saw it
    for r in (a,b):
        z,y = r['cpls']['z'],r['cpls']['y']
        confusion = torch.zeros(K, K).index_put_((y,z.argmax(1)), torch.ones(61), accumulate=True)
        torch.testing.assert_close(r['cpls']['S'], .5*torch.eye(K)+.5*confusion/confusion.sum(1, keepdim=True), atol=1e-6, rtol=0)
    # each process predicts the whole validation list, and fits its temperature to it
    y = toy_data(60, seed=1)[1]
    for r in (a,b):
        assert torch.equal(r['targs'], y)
        torch.testing.assert_close(r['preds'], r['z'].softmax(1), atol=1e-6, rtol=0)
        assert abs(r['T']-fit_temperature(r['z'].softmax(1), y))<1e-4
    assert abs(a['T']-fit_temperature(a['z'][:30].softmax(1), y[:30]))>1e-3  # of half of the list it would be another
