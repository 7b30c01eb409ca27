"Killed in the middle of an epoch and started again, training ends as if nothing had happened."
import signal, subprocess, sys
from pathlib import Path
import pytest, torch
from forked import run_forked

here = Path(__file__).parent
program = here/'resume_worker.py'

@pytest.mark.parametrize('kill_at', [3, 15, 24])   # 6 batches an epoch: in the first, in the third, with the last batch
def test_kill_and_resume(tmp_path, kill_at):
    whole,broken = tmp_path/'whole',tmp_path/'broken'
    for o in (whole,broken): (o/'models').mkdir(parents=True)
    r = subprocess.run([sys.executable, program, whole], cwd=here, capture_output=True, text=True, timeout=300)
    assert r.returncode==0, r.stderr
    r = run_forked(program, broken, kill_at, cwd=here); assert r.returncode==-signal.SIGKILL, r.stderr
    assert not (broken/'end.pt').exists()
    r = run_forked(program, broken, cwd=here); assert r.returncode==0, r.stderr
    a,b = torch.load(whole/'end.pt'),torch.load(broken/'end.pt')
    assert torch.equal(a['S'], b['S']) and torch.equal(a['w'], b['w'])
    assert a['history']==b['history'] and len(a['history'])==4
