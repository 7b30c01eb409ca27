"A comparison that is killed and started again ends as if nothing had happened; tables are made of what is stored; two processes share one."
import io, json, os, shutil, signal, subprocess, sys, warnings
from pathlib import Path
import cv2, numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from rich.console import Console
from forked import run_forked
from ols_fastai.core import load_metadata, load_tensors, save_tensors
from ols_fastai.train.methods import METHODS, Method
from ols_fastai.data.checks import check_images
from ols_fastai.data.loaders import image_dls
from ols_fastai.calibration.metrics import nll
from ols_fastai.calibration.scaling import calibrate
from ols_fastai.calibration.temperature import apply_temperature, fit_temperature, refinement
from ols_fastai.compare.comparison import compare
from ols_fastai.compare.results import load_comparison, load_network, print_summary, run_file, run_learner
from ols_fastai.compare.report import save_figures, save_predictions, save_report
from ols_fastai.compare.statistics import paired_differences

here = Path(__file__).parent
quiet = Console(file=io.StringIO(), force_jupyter=False)

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

def lists(data): return {o: data/f'{o}.csv' for o in ('train','valid','test')}

def small(data, out, **kwargs): return compare(**{**lists(data), **dict(out=out, methods=['hard'], arch='small_cnn', epochs=1, bs=8, size=16, num_workers=0, console=quiet), **kwargs})

def environment(env): return {**os.environ, 'OMP_NUM_THREADS':'1', 'CUDA_VISIBLE_DEVICES':'', **env}

def run(*args, launcher=(), **env):
    "In a process that is started afresh"
    return subprocess.run([sys.executable, *launcher, str(here/'compare_worker.py'), *map(str, args)], cwd=here, capture_output=True, text=True, timeout=300, env=environment(env))

def run_again(*args, **env): return run_forked(here/'compare_worker.py', *args, cwd=here, env=environment(env))

two = dict(launcher=('-m','torch.distributed.run','--standalone','--nproc_per_node','2'), ACCELERATE_USE_CPU='true')

def figures(out): return pd.read_csv(out/'results.csv').drop(columns='seconds')

@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    r = run(data, out); assert r.returncode==0, r.stderr
    return out

# --- killed and started again

# 3 batches an epoch, 9 a run, 6 runs: in the second epoch of the first run, in the last of the second, in the third run, in the fifth
@pytest.mark.parametrize('kill_at', [5, 17, 22, 44, 50])
def test_killed_comparison_ends_as_an_uninterrupted_one(data, whole, tmp_path, kill_at):
    r = run_again(data, tmp_path, kill_at); assert r.returncode==-signal.SIGKILL, r.stderr
    n_done = (kill_at-1)//9
    kept = {o.name: o.stat().st_mtime_ns for o in (tmp_path/'runs').iterdir()}
    assert len(kept)==n_done and [o.suffix for o in (tmp_path/'unfinished').iterdir()]==['.pt']
    epoch = torch.load(next((tmp_path/'unfinished').iterdir()), weights_only=True)['epoch']
    assert epoch==(kill_at-1)%9//3-1
    r = run_again(data, tmp_path); assert r.returncode==0, r.stderr
    pd.testing.assert_frame_equal(figures(tmp_path), figures(whole))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'history.csv'), pd.read_csv(whole/'history.csv'))
    assert all((tmp_path/'runs'/o).stat().st_mtime_ns==t for o,t in kept.items()), 'finished runs are not repeated'
    for fn in (whole/'runs').iterdir():
        a,b = load_tensors(fn)[0],load_tensors(tmp_path/'runs'/fn.name)[0]
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert not list((tmp_path/'unfinished').iterdir())

# 3 batches an epoch, 9 a run: in the second epoch of each run
@pytest.mark.parametrize('kill_at', [5, 14])
def test_augmentation_goes_on_where_it_was_stopped(data, tmp_path, kill_at):
    env = dict(METHODS='hard,mixup', SETTINGS=json.dumps(dict(augment=True, flip=True, channels=1)))
    r = run(data, tmp_path/'whole', **env); assert r.returncode==0, r.stderr
    r = run_again(data, tmp_path/'killed', kill_at, **env); assert r.returncode==-signal.SIGKILL, r.stderr
    r = run_again(data, tmp_path/'killed', **env); assert r.returncode==0, r.stderr
    for o in ('hard','mixup'):
        a,b = (load_tensors(tmp_path/k/f'models/{o}-0.safetensors')[0] for k in ('whole','killed'))
        assert all(torch.equal(a[k], b[k]) for k in a) and a['0.0.weight'].shape[1]==1
    with pytest.raises(ValueError, match='augment was True and is now None'):
        small(data, tmp_path/'whole', methods=['hard'], epochs=3, crop=.8, flip=True, channels=1)

def test_12_bits_in_16_are_shown_by_a_window(data, tmp_path):
    (deep:=tmp_path/'deep').mkdir()
    for fn in data.glob('*.csv'): (deep/fn.name).write_bytes(fn.read_bytes())
    for fn in data.glob('*.png'): cv2.imwrite(str(deep/fn.name), cv2.imread(str(fn), cv2.IMREAD_GRAYSCALE).astype(np.uint16)*16)
    with pytest.warns(UserWarning, match='48 of 48 images have 16 bits, and no value above 3...'): assert not len(check_images(table_of(deep), deep, progress=False))
    want,dark,shown = (small(o, tmp_path/k, window=w)['NLL'][0] for k,o,w in (('8',data,None), ('dark',deep,None), ('shown',deep,(2040,4080))))
    assert shown==pytest.approx(want, abs=1e-4) and abs(dark-want)>.01
    assert load_metadata(run_file(tmp_path/'shown', 'runs', 'hard', 0))['settings']['window']==[2040,4080]
    with pytest.raises(ValueError, match='window was .* and is now None'): small(deep, tmp_path/'shown')
    page = save_report(tmp_path/'shown', ['hard'], table_of(deep), deep).read_text()
    assert 'Parts of this report are missing' not in page
    for bad in ((40,), (40,0), (1,2,3)):
        with pytest.raises(ValueError, match='window must be a centre and a width'): small(deep, tmp_path/'bad', window=bad)

def test_threads_change_no_run(data, tmp_path):
    "With none, with two, and killed with one and resumed with four"
    def env(n): return dict(METHODS='ols', SETTINGS=json.dumps(dict(num_workers=n, flip=True)))
    r = run(data, tmp_path/'0', **env(0)); assert r.returncode==0, r.stderr
    r = run_again(data, tmp_path/'2', **env(2)); assert r.returncode==0, r.stderr
    r = run_again(data, tmp_path/'killed', 5, **env(1)); assert r.returncode==-signal.SIGKILL, r.stderr
    r = run_again(data, tmp_path/'killed', **env(4)); assert r.returncode==0, r.stderr
    want,*others = (load_tensors(tmp_path/o/'models/ols-0.safetensors')[0] for o in ('0','2','killed'))
    for o in others: assert all(torch.equal(o[k], want[k]) for k in want)

def test_a_damaged_or_foreign_unfinished_run_is_named(data, whole, tmp_path):
    args = dict(epochs=3, crop=.8)
    r = run_again(data, tmp_path, 5); assert r.returncode==-signal.SIGKILL, r.stderr
    fn = tmp_path/'unfinished/hard-0.pt'
    with pytest.raises(ValueError, match='epochs was 3 and is now 4'): small(data, tmp_path, **{**args,'epochs':4})
    kept = fn.read_bytes()
    fn.write_bytes(kept[:len(kept)//2])
    with pytest.raises(ValueError, match='hard-0.pt is damaged .*remove it'): small(data, tmp_path, **args)
    fn.unlink()
    r = run_again(data, tmp_path); assert r.returncode==0, r.stderr  # in a process like that of `whole`: with other threads sums come in another order
    pd.testing.assert_frame_equal(figures(tmp_path), figures(whole))

def test_a_watched_run_that_is_killed_keeps_its_best_epoch(data, tmp_path):
    r = run(data, tmp_path/'whole', 0, 'refinement'); assert r.returncode==0, r.stderr
    r = run_again(data, tmp_path/'killed', 10, 'refinement'); assert r.returncode==-signal.SIGKILL, r.stderr
    for fn in (tmp_path/'killed/unfinished').glob('*-best.pth'): fn.write_bytes(b'cut')   # as a kill may leave it
    r = run_again(data, tmp_path/'killed', 0, 'refinement'); assert r.returncode==0, r.stderr
    for o in ('results','history'): pd.testing.assert_frame_equal(*(pd.read_csv(tmp_path/k/f'{o}.csv').drop(columns='seconds', errors='ignore') for k in ('whole','killed')))
    a,b = (load_tensors(tmp_path/k/'runs/ols-0.safetensors')[0] for k in ('whole','killed'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not list((tmp_path/'killed/unfinished').iterdir())

# --- watched

class Worse(Callback):
    "Breaks the network in the last epochs"
    order,run_valid = 40,False
    def __init__(self, first): self.first = first
    def after_train(self):
        if self.epoch<self.first: return
        with torch.no_grad(): self.model[-1].weight.copy_(-self.model[-1].weight)

@pytest.mark.parametrize('monitor', ['accuracy','nll','refinement'])
def test_the_best_epoch_is_kept_and_patience_stops(data, tmp_path, monkeypatch, monitor):
    monkeypatch.setitem(METHODS, 'worse', Method('worse', lambda: (CrossEntropyLossFlat(), Worse(3)), 'here'))
    small(data, tmp_path/'last', methods=['worse'], epochs=6, lr=.01)
    small(data, tmp_path, methods=['worse'], epochs=6, lr=.01, monitor=monitor, patience=2)
    tensors,info = load_comparison(tmp_path)['worse']
    way = pd.DataFrame(info['history'])
    best = way[monitor].idxmax() if monitor=='accuracy' else way[monitor].idxmin()
    assert len(way)==min(6, best+3) and list(way.epoch)==list(range(len(way)))
    accuracy = (tensors['valid_preds'].argmax(1)==tensors['valid_targs']).float().mean().item()
    assert accuracy==pytest.approx(way.accuracy[best])
    assert 'patience' in info['settings'] and 'patience' not in load_comparison(tmp_path/'last')['worse'][1]['settings']

class Stops(Callback):
    "Ctrl-C in an epoch"
    order,run_valid = 98,False
    def __init__(self, worse, epoch): self.worse,self.at = worse,epoch
    def after_train(self):
        self.worse.learn = self.learn
        self.worse.after_train()
        if self.epoch==self.at: raise KeyboardInterrupt

def test_an_interrupted_run_knows_what_was_best_and_how_long_it_has_waited(data, tmp_path, monkeypatch):
    watched = dict(methods=['worse'], epochs=8, lr=.01, monitor='nll', patience=3)
    def compare_until(epoch, out):
        monkeypatch.setitem(METHODS, 'worse', Method('worse', lambda: (CrossEntropyLossFlat(), Stops(Worse(2), epoch)), 'here'))
        small(data, out, **watched)
    compare_until(None, tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): compare_until(4, tmp_path/'interrupted')
    compare_until(None, tmp_path/'interrupted')
    a,b = (load_comparison(tmp_path/o)['worse'] for o in ('whole','interrupted'))
    way = pd.DataFrame(a[1]['history'])
    assert way.nll.idxmin()<4 and len(way)<8     # stopped, after an epoch that was the best before the interruption
    assert a[1]['history']==b[1]['history'] and torch.equal(a[0]['preds'], b[0]['preds'])

def test_each_run_keeps_its_way(data, tmp_path):
    small(data, tmp_path, methods=['hard','ols'], epochs=3)
    table = pd.read_csv(tmp_path/'history.csv')
    assert list(table.groupby(['method','seed']).size())==[3,3]
    assert {'epoch','lr','train_loss','valid_loss','accuracy','S_diagonal'}<=set(table)
    tensors,info = load_comparison(tmp_path)['ols']
    assert info['history'][-1]['S_diagonal']==pytest.approx(tensors['S'].diagonal().mean().item(), abs=1e-6)
    assert 'S_diagonal' not in load_comparison(tmp_path)['hard'][1]['history'][0]
    assert info['history'][-1]['accuracy']==pytest.approx((tensors['valid_preds'].argmax(1)==tensors['valid_targs']).float().mean().item())

# --- tables are what lies in runs/

def test_results_hold_what_is_stored_and_nothing_else(data, tmp_path):
    small(data, tmp_path, methods=['hard','ls'])
    assert set(pd.read_csv(tmp_path/'results.csv').method)=={'hard','ls'}
    shutil.rmtree(tmp_path/'runs')
    shutil.rmtree(tmp_path/'models')
    small(data, tmp_path, epochs=2)
    table = pd.read_csv(tmp_path/'results.csv')
    assert set(table.method)=={'hard'} and len(table)==2 and len(pd.read_csv(tmp_path/'history.csv'))==2

def test_other_settings_are_refused_for_a_new_method_too(data, tmp_path):
    small(data, tmp_path)
    for other in (dict(epochs=2), dict(monitor='nll'), dict(size=20)):
        with pytest.raises(ValueError, match=f'{next(iter(other))} was'): small(data, tmp_path, methods=['ls'], **other)
    small(data, tmp_path, methods=['ls'], wd=.5)   # which the schedule does not read

def test_other_bins_are_of_all_rows(data, tmp_path):
    small(data, tmp_path, methods=['hard','ls'])
    small(data, tmp_path, methods=['hard'], n_bins=10)
    table = pd.read_csv(tmp_path/'results.csv')
    assert 'ECE (15 bins)' not in table and table['ECE (10 bins)'].notna().all() and set(table.method)=={'hard','ls'}

def test_workers_are_no_setting(data, tmp_path):
    small(data, tmp_path)
    fn = tmp_path/'runs/hard-0.safetensors'
    assert 'num_workers' not in str(load_metadata(fn)['settings'])
    made = fn.stat().st_mtime_ns
    small(data, tmp_path, num_workers=1)
    assert fn.stat().st_mtime_ns==made

@pytest.mark.parametrize('bad,says', [(dict(n_bins=0),'n_bins must be at least 1'), (dict(pretrained=True),'small_cnn has no pretrained weights'), (dict(crop=2.),'crop must be'),
                                      (dict(patience=1),'patience needs monitor'), (dict(methods=['hard','ls:eps=9']),'eps must be'), (dict(seeds=0),'seeds must be')])
def test_what_is_wrong_is_said_before_anything_is_read(tmp_path, bad, says):
    with pytest.raises(ValueError, match=says): compare('no list', 'no list', 'no list', out=tmp_path/'out', **{'arch':'small_cnn', **bad})
    assert not (tmp_path/'out').exists()

def test_two_commands_can_not_write_to_one_folder(data, tmp_path):
    hold = f"""
import time
from ols_fastai.core import lock_folder
with lock_folder({str(tmp_path)!r}):
    print('locked', flush=True)
    time.sleep(100)"""
    p = subprocess.Popen([sys.executable, '-c', hold], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='locked\n'
    with pytest.raises(ValueError, match='another command is at work'): small(data, tmp_path)
    p.kill()
    p.wait()
    assert len(small(data, tmp_path))==2

def test_lists_of_classes_are_called_multi_label(data, tmp_path):
    table = pd.concat([pd.read_csv(data/f'{o}.csv').assign(split=o) for o in ('train','valid','test')])
    table.loc[table.filename=='train_0_0.png', 'label'] = 'every 2|every 3'
    with pytest.raises(ValueError, match='multi-label'): small(data, tmp_path, train=table, valid=None, test=None, root=data)

def test_two_seeds_show_their_values(data, tmp_path):
    out = io.StringIO()
    for n,says in ((2,'mean of 2 seeds (and both)'), (3,'mean of 3 seeds ± half of the 95 % interval')):
        results = small(data, tmp_path, seeds=n)
        print_summary(results, Console(file=out, width=200, force_jupyter=False))
        assert says in out.getvalue()
        assert ('±' in out.getvalue().replace('seeds ±', ''))==(n==3)

# --- ensembles, and what is tuned

def test_several_seeds_have_an_ensemble(data, tmp_path):
    results = small(data, tmp_path, methods=['hard','ols'], seeds=3)
    rows = results[results.seed.isna()]
    assert list(rows.method)==2*['hard ensemble']+2*['ols ensemble'] and len(results)==16
    runs = [load_tensors(run_file(tmp_path, 'runs', 'ols', o))[0] for o in range(3)]
    preds,valid = (torch.stack([o[k] for o in runs]).mean(0) for k in ('preds','valid_preds'))
    targs,T = runs[0]['targs'],fit_temperature(valid, runs[0]['valid_targs'])
    plain,scaled = (rows[(rows.method=='ols ensemble')&(rows.scaled==o)].iloc[0] for o in ('none','temperature'))
    assert plain.NLL==pytest.approx(nll(preds, targs), abs=1e-6) and plain['T']==1
    assert scaled['T']==pytest.approx(T, abs=1e-4) and scaled.NLL==pytest.approx(nll(apply_temperature(preds, T), targs), abs=1e-5)
    assert plain.seconds==pytest.approx(results[(results.method=='ols')&(results.scaled=='none')].seconds.sum())
    stored = pd.read_csv(tmp_path/'results.csv')
    assert len(stored)==16 and stored[stored.method=='ols ensemble'].seed.isna().all() and stored.seed.max()==2
    out = io.StringIO()
    print_summary(results, Console(file=out, width=200, force_jupyter=False))
    assert 'mean of 3 seeds' in out.getvalue() and out.getvalue().count('ensemble')==4
    page = save_report(tmp_path, ['hard','ols'], table_of(data), data).read_text()
    (fn,),df = save_predictions(tmp_path, ['hard','ols'], table_of(data)),table_of(data)
    table,(tensors,info) = pd.read_csv(fn),load_comparison(tmp_path)['ols']
    p = apply_temperature(tensors['preds'], fit_temperature(tensors['valid_preds'], tensors['valid_targs']))
    assert table.filename.tolist()==df.filename[df['split']=='test'].tolist() and table.label.tolist()==[info['vocab'][o] for o in tensors['targs']]
    assert table['ols: class'].tolist()==[info['vocab'][o] for o in p.argmax(1)] and np.allclose(table['ols: probability after T'], p.amax(1), atol=1e-4) and 'hard: class' in table
    assert np.allclose(table[[f'ols: P({o}) after T' for o in info['vocab']]], p, atol=1e-4)
    assert 'online label smoothing (ensemble)' in page and 'mean of 3' in page
    d = paired_differences(results[results.scaled=='none'], 'ols', measures=('NLL',))
    assert list(d.index.get_level_values('against'))==['hard'] and d.seeds.iloc[0]==3

def test_one_seed_has_no_ensemble_and_a_later_one_makes_it(data, tmp_path):
    assert small(data, tmp_path).seed.notna().all()
    small(data, tmp_path, methods=['ls'])
    assert set(small(data, tmp_path, seeds=2).method)=={'hard','hard ensemble'}
    assert set(pd.read_csv(tmp_path/'results.csv').method)=={'hard','ls','hard ensemble'}

def test_runs_that_do_not_go_together_are_no_ensemble(data, tmp_path):
    small(data, tmp_path, methods=['hard','ols'], seeds=2)
    fn = run_file(tmp_path, 'runs', 'ols', 1)
    tensors,info = load_tensors(fn)
    save_tensors(fn, dict(tensors, targs=tensors['targs'].flip(0)), info)
    with pytest.warns(UserWarning, match="no ensemble of ols: ols-1 can't join ols-0 in an ensemble: it was judged on other images"):
        results = small(data, tmp_path, methods=['hard','ols'], seeds=2)
    assert 'hard ensemble' in set(results.method) and 'ols ensemble' not in set(results.method)
    with pytest.warns(UserWarning, match='leaves out ols ensemble'): page = save_report(tmp_path, ['hard','ols'], table_of(data), data).read_text()
    assert 'hard labels (ensemble)' in page and 'left out: ols ensemble' in page

def test_tuned_by_patient_and_the_edge_is_said(data, tmp_path):
    table = table_of(data)
    table['patient'] = [f'{r.split}{i//3}' for i,r in enumerate(table.itertuples())]
    results = small(data, tmp_path, train=table, valid=None, test=None, root=data, methods=['hard'], tune='ls:eps=.3,.1')
    tuned = pd.read_csv(tmp_path/'tuned.csv')
    assert list(tuned.value)==[.1,.3] and tuned.chosen.sum()==1 and tuned.at_edge.tolist()==tuned.chosen.tolist()
    t = load_tensors(run_file(tmp_path, 'runs', 'ls:eps=0.1', 0))[0]
    who = table.patient[table['split']=='valid']
    by_patient,by_image = (refinement(t['valid_preds'], t['valid_targs'], o) for o in (who,None))
    assert tuned.refinement[0]==pytest.approx(by_patient) and by_patient!=by_image
    assert set(results.method)=={'hard','ls:eps=0.1','ls:eps=0.3','ls tuned'}

# --- nothing fails for one method's sake

class Diverges(Callback):
    def after_pred(self): self.learn.pred = self.learn.pred*float('nan')

@pytest.fixture
def three(data, tmp_path, monkeypatch):
    "A comparison of which one method has diverged"
    monkeypatch.setitem(METHODS, 'nan', Method('diverging', lambda: (CrossEntropyLossFlat(), Diverges()), 'here'))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        results = small(data, tmp_path, methods=['nan','hard','ols'])
    return tmp_path,results,[str(o.message) for o in said]

def table_of(data): return pd.concat([pd.read_csv(data/f'{o}.csv').assign(split=o) for o in ('train','valid','test')], ignore_index=True)

def test_the_report_says_how_many_patients_are_in_two_splits(three, data):
    out,_,_ = three
    df = table_of(data)
    df['patient'] = pd.Series([f'{r.split}{i}' for i,r in enumerate(df.itertuples())], dtype=object)
    df.loc[[0,47,1,46],'patient'] = [7,'7',8.,'8']   # of the first and of the last split
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); page = save_report(out, ['hard','ols'], df, data).read_text()
    assert 'patients in more than one split: 2' in page

def test_a_run_that_diverges_costs_the_comparison_this_run(three, data):
    out,results,said = three
    assert list(results.method.unique())==['hard','ols'] and list(pd.read_csv(out/'results.csv').method.unique())==['hard','ols']
    assert any(o.startswith('diverging, seed 0: predictions are not finite') for o in said)
    assert not list((out/'unfinished').iterdir())
    with pytest.warns(UserWarning, match='leaves out nan: there is no run'): files = save_figures(out, ['nan','hard','ols'])
    assert [o.name for o in files]==['reliability.png','training.png','soft_labels.png']
    with pytest.warns(UserWarning, match='leaves out nan'): page = save_report(out, ['nan','hard','ols'], table_of(data), data).read_text()
    assert 'online label smoothing' in page and 'left out: nan' in page

@pytest.mark.parametrize('damage', ['nan','other images','collapsed','valid'])
def test_a_run_that_can_not_be_judged_is_left_out(data, tmp_path, damage):
    small(data, tmp_path, methods=['hard','ls','ols'])
    fn = run_file(tmp_path, 'runs', 'ls', 0)
    tensors,info = load_tensors(fn)
    if damage=='nan': tensors['preds'][0] = float('nan')
    if damage=='other images': tensors['targs'] = tensors['targs'].flip(0)
    if damage=='collapsed': tensors.update({k: torch.full_like(tensors[k], 1/3) for k in ('preds','valid_preds')})
    if damage=='valid': tensors['valid_targs'] = tensors['valid_targs'][:-1]
    save_tensors(fn, tensors, info)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        results = small(data, tmp_path, methods=['hard','ls','ols'])
        files = save_figures(tmp_path, ['hard','ls','ols'])
        report = save_report(tmp_path, ['hard','ls','ols'], table_of(data), data)
    assert {'hard','ols'}<=set(results.method) and {'reliability.png','soft_labels.png'}<={o.name for o in files}
    page = report.read_text()
    assert 'online label smoothing' in page
    messages = [str(o.message) for o in said]
    if damage in ('nan','other images'): assert 'left out: ls' in page and any('leaves out ls' in o for o in messages)
    if damage in ('nan','valid'): assert any("label smoothing, seed 0 can't be judged" in o for o in messages)

@pytest.mark.parametrize('damage,left', [('history','training.png'),('versions','report.html')])
def test_a_run_that_one_picture_or_the_report_can_not_take_is_left_out_of_it(data, tmp_path, damage, left):
    methods = ['hard','ls','ols']
    small(data, tmp_path, methods=methods)
    fn = run_file(tmp_path, 'runs', 'ls', 0)
    tensors,info = load_tensors(fn)
    if damage=='history': info['history'] = [dict(time=1)]
    else: del info['versions']
    save_tensors(fn, tensors, info)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        files = save_figures(tmp_path, methods)
        report = save_report(tmp_path, methods, table_of(data), data)
    assert {'reliability.png','training.png','soft_labels.png'}=={o.name for o in files}
    messages = [str(o.message) for o in said]
    what = 'a picture' if left=='training.png' else 'the report'
    assert [o for o in messages if 'leaves out' in o]==[o for o in messages if o.startswith(f'{what} leaves out ls: ')]!=[], messages
    assert ('label smoothing' in report.read_text().replace('online label smoothing', ''))==(damage=='history')

def test_a_picture_that_can_not_be_drawn_costs_no_other(data, tmp_path, monkeypatch):
    small(data, tmp_path, methods=['hard','ols'])
    fn = run_file(tmp_path, 'runs', 'ols', 0)
    tensors,info = load_tensors(fn)
    del tensors['S']
    save_tensors(fn, tensors, info)
    with pytest.warns(UserWarning, match='soft_labels.png is missing: KeyError'): files = save_figures(tmp_path, ['hard','ols'])
    assert [o.name for o in files]==['reliability.png','training.png']
    def full(*args, **kwargs): raise OSError('no space left')   # the disk is no method's fault
    monkeypatch.setattr('ols_fastai.compare.report.plot_reliability', full)
    with pytest.raises(OSError, match='no space'): save_figures(tmp_path, ['hard','ols'])

def test_an_image_that_has_gone_costs_the_report_this_image(data, tmp_path):
    copy = tmp_path/'images'
    shutil.copytree(data, copy)
    small(copy, tmp_path/'out', methods=['hard','ols'])
    for fn in copy.glob('test_*.png'): fn.unlink()
    assert 'online label smoothing' in save_report(tmp_path/'out', ['hard','ols'], table_of(data), copy).read_text()

def test_a_baseline_that_diverges_is_trained_once(data, tmp_path, monkeypatch):
    trained = []
    def make(): trained.append(1); return CrossEntropyLossFlat(),Diverges()
    monkeypatch.setitem(METHODS, 'hard', Method('hard labels', make, 'here'))
    with pytest.warns(UserWarning) as said: results = small(data, tmp_path, methods=['hard','ls_plus','tfkd_self','ls'])
    assert list(results.method.unique())==['ls']
    assert sum('hard labels' in str(o.message) for o in said)==3 and len(trained)==2   # once to see that it can be made

# --- several processes

def test_two_processes_share_a_comparison(data, tmp_path):
    "With the batch of one process, and its figures but for rounding"
    r = run(data, tmp_path/'two', **two, CROP='1')
    assert r.returncode==0, r.stderr[-3000:]
    assert r.stderr.count('hard labels, seed 0')==1
    r = run_again(data, tmp_path/'one', CROP='1', METHODS='hard,ols,tfkd_self'); assert r.returncode==0, r.stderr
    pd.testing.assert_frame_equal(figures(tmp_path/'two'), figures(tmp_path/'one'), rtol=0, atol=1e-4)
    a,b = (pd.read_csv(tmp_path/o/'history.csv') for o in ('two','one'))
    pd.testing.assert_frame_equal(a, b, rtol=0, atol=1e-4)
    settings = [load_metadata(tmp_path/o/'runs/ols-0.safetensors')['settings']['processes'] for o in ('two','one')]
    assert settings==[2,1]

def test_two_processes_cut_the_windows_of_one(data, tmp_path):
    r = run(data, tmp_path/'two', **two, METHODS='hard,ols'); assert r.returncode==0, r.stderr[-3000:]
    r = run_again(data, tmp_path/'one', METHODS='hard,ols'); assert r.returncode==0, r.stderr
    pd.testing.assert_frame_equal(figures(tmp_path/'two'), figures(tmp_path/'one'), rtol=0, atol=1e-4)

def test_two_processes_stop_and_keep_the_best_together(data, tmp_path):
    r = run(data, tmp_path/'two', 0, 'refinement', **two, CROP='1', METHODS='ols'); assert r.returncode==0, r.stderr[-3000:]
    r = run_again(data, tmp_path/'one', 0, 'refinement', CROP='1'); assert r.returncode==0, r.stderr
    pd.testing.assert_frame_equal(figures(tmp_path/'two'), figures(tmp_path/'one'), rtol=0, atol=1e-4)

def test_a_killed_comparison_of_two_processes_goes_on(data, tmp_path):
    r = run(data, tmp_path/'killed', 14, **two); assert r.returncode!=0     # in the second run
    r = run(data, tmp_path/'killed', **two); assert r.returncode==0, r.stderr[-3000:]
    r = run(data, tmp_path/'whole', **two); assert r.returncode==0, r.stderr[-3000:]
    pd.testing.assert_frame_equal(figures(tmp_path/'killed'), figures(tmp_path/'whole'), rtol=0, atol=1e-4)

@pytest.mark.parametrize('damaged', ['train','test'])
def test_an_error_in_one_process_ends_both(data, tmp_path, damaged):
    "A damaged training image is met by one of them alone"
    copy = tmp_path/'images'
    shutil.copytree(data, copy)
    (copy/f'{damaged}_1_2.png').write_bytes(b'no picture')
    r = run(copy, tmp_path/'out', **two)   # a hang would be a TimeoutExpired
    assert r.returncode!=0 and f'{damaged}_1_2.png' in r.stderr

# --- statistics of what `compare` gives

def test_differences_take_one_row_of_each_run():
    rows = [dict(method=m, seed=s, scaled=o, NLL=s+n+.1*s*n) for m,n in (('hard',1),('ols',2)) for s in range(3) for o in ('none','temperature')]
    results = pd.DataFrame(rows)
    says = r"hard has several rows for seed 0.*results\[results\.scaled=='none'\], or 'temperature'"
    with pytest.raises(ValueError, match=says): paired_differences(results, 'ols', measures=('NLL',))
    for o in ('none','temperature'):
        d = paired_differences(results[results.scaled==o], 'ols', measures=('NLL',))
        assert d.loc[('hard','NLL'),'difference']==pytest.approx(1.1) and d.loc[('hard','NLL'),'seeds']==3

# --- from a comparison to a learner

def test_the_network_of_a_run_becomes_a_learner(data, tmp_path):
    "Of one channel too; other classes, sizes and channels than those of the training are refused"
    small(data, tmp_path/'out', methods=['ols'], channels=1)
    def loaders(size=16, channels=1): return image_dls(**lists(data), size=size, bs=8, channels=channels, num_workers=0)
    dls = loaders()
    learn = run_learner(dls, tmp_path/'out', 'ols')
    assert not learn.model.training
    with learn.no_bar(): calibrate(learn)
    table = pd.read_csv(tmp_path/'out/results.csv').query("scaled=='temperature'").iloc[0]
    assert learn.model.T==pytest.approx(table['T'], rel=1e-3)
    with learn.no_bar(): p,t = learn.get_preds(ds_idx=2)
    assert nll(p, t)==pytest.approx(table['NLL'], rel=1e-3)
    for other,says in ((dict(size=20),'1 x 16 x 16, and these loaders give 1 x 20 x 20'), (dict(channels=3),'channels=1')):
        with pytest.raises(ValueError, match=says): run_learner(loaders(**other), tmp_path/'out', 'ols')
    table = {o: pd.read_csv(fn).query("label!='every 2'") for o,fn in lists(data).items()}
    fewer = image_dls(pd.concat([o.assign(split=k) for k,o in table.items()]), root=data, size=16, bs=8, channels=1, num_workers=0)
    with pytest.raises(ValueError, match='not those of the run: every 2'): run_learner(fewer, tmp_path/'out', 'ols')
    wrong = Learner(fewer, load_network(tmp_path/'out', 'ols'), loss_func=CrossEntropyLossFlat())
    with wrong.no_bar(), pytest.raises(ValueError, match='3 outputs, and the loaders have 2 classes'): calibrate(wrong)
