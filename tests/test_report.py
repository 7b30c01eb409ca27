"The report, opened in headless Chromium at the width of a phone and of a desk, and what it does with odd names, learners and calibrated networks."
import base64, html, json, re, shutil, subprocess
from importlib.metadata import version
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from torch.utils.data import TensorDataset
from fastai.basics import first
from conftest import toy_data, toy_learner
from ols_fastai.train.ols import OLSCallback
from ols_fastai.data.splits import SPLITS
from ols_fastai.data.datasets import brain_regions
from ols_fastai.compare.cli import ols_compare
from ols_fastai.calibration.interpretation import CalibrationInterpretation
from ols_fastai.calibration.scaling import calibrate
from ols_fastai.calibration.report import calibration_report

nasty = ['<b>bold</b>', '"quoted" & sons', "$\\frac{1}{$", '<script>document.title="pwned"</script>', 'ä{{ 7*7 }}ß', 'a_very_long_name_without_a_blank_'*4]

def run(scale=1., n=600, K=6, seed=0, **kwargs):
    g = torch.Generator().manual_seed(seed)
    z = 2*torch.randn(2*n, K, generator=g)
    y = torch.multinomial(z.softmax(1), 1, generator=g)[:,0]
    p = (scale*z).softmax(1)
    return dict(preds=p[n:], targs=y[n:], valid_preds=p[:n], valid_targs=y[:n], vocab=nasty[:K], settings=dict(scale=scale, lists=dict(train='a<b>.csv')), seed=7, versions=dict(torch='0.0'), **kwargs)

def all_there(path, **kwargs):
    "A report with every kind of section"
    n = 600
    items = pd.DataFrame(dict(filename=[f'im<{i}>.png' for i in range(n)], site=np.where(np.arange(n)%2, '<i>A</i>', 'B'), patient=np.arange(n)//3))
    images = [np.full((8,8,3), i%256, dtype=np.uint8) for i in range(n)]
    S = .8*torch.eye(6)+.2*torch.roll(torch.eye(6), 1, 1)
    return calibration_report(path, {'<i>hard</i>': run(2., items=items, images=images), 'careful $x$': run(.6, S=S)}, title='<b>Title</b>', by=['site'], groups='patient', n=30, data={'source': '<u>here</u>'}, **kwargs)

# ---- Chromium

probe = """<script>
window.found = {errors: []};
window.addEventListener('error', e => found.errors.push(String(e.message || e.target.src || e.target.href).slice(0, 200)), true);
document.addEventListener('securitypolicyviolation', e => found.errors.push('blocked: ' + e.blockedURI));
window.addEventListener('load', () => {
  const links = [...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute('href').slice(1)), images = [...document.images];
  Object.assign(found, {width: innerWidth, title: document.title, n_links: links.length, dead: links.filter(o => !document.getElementById(o)), n_images: images.length,
    broken: images.filter(o => !(o.complete && o.naturalWidth > 0)).length, squeezed: images.filter(o => Math.abs(o.width/o.height - o.naturalWidth/o.naturalHeight) > .05).length,
    page: document.documentElement.scrollWidth, wide: [...document.querySelectorAll('body *')].filter(o => o.getBoundingClientRect().right > innerWidth + 1 && !o.closest('.scroll, .wide')).map(o => o.tagName + ' ' + o.className).slice(0, 5),
    injected: document.querySelectorAll('td b, td i, td u, th b, th i, li i, li b, h1 b, figcaption i').length, loaded: performance.getEntriesByType('resource').filter(o => !o.name.startsWith('data:')).map(o => o.name),
    small: [...document.querySelectorAll('p, td, th, li, figcaption')].filter(o => parseFloat(getComputedStyle(o).fontSize) < 12).length});
  const out = document.createElement('pre'); out.id = 'found'; out.textContent = JSON.stringify(found); document.body.append(out);
});
</script>"""

def chromium(tmp_path, *args):
    "Run Debian's Chromium; its messages"
    exe = first(map(shutil.which, ('chromium','chromium-browser')), bool)
    assert exe, "the report is tested in Chromium and there is none: apt-get install chromium"
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
             '--hide-scrollbars', '--enable-logging=stderr', f'--user-data-dir={tmp_path/"profile"}']
    r = subprocess.run([exe, *flags, *map(str, args)], capture_output=True, text=True, timeout=300)
    assert not r.returncode, r.stderr[-2000:]
    return r

def looked_at(path, tmp_path, width):
    "What a page of `width` pixels shows; the page is in a frame, for Chromium's window can't be as narrow as a phone everywhere"
    page = path.read_text()
    assert page.count("default-src 'none'")==1
    page = page.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'", 1).replace('<style>', probe+'<style>', 1)  # what is tested is allowed its one script
    (tmp_path/'page.html').write_text(page)
    frame = f"""<!DOCTYPE html><title>-</title><body><iframe id="f" src="page.html" width="{width}" height="900" style="border:0"></iframe><script>
      window.addEventListener('load', () => setTimeout(() => {{ document.body.append(Object.assign(document.createElement('pre'), {{id: 'found', textContent: document.getElementById('f').contentDocument.getElementById('found').textContent}})) }}, 0))</script>"""
    (tmp_path/'frame.html').write_text(frame)
    r = chromium(tmp_path, '--allow-file-access-from-files', '--window-size=1400,1000', '--virtual-time-budget=10000', '--dump-dom', (tmp_path/'frame.html').as_uri())
    m = re.search(r'<pre id="found">(.*?)</pre>', r.stdout, re.S)
    assert m, f'the page was not looked at: {r.stderr[-2000:]}'
    return json.loads(html.unescape(m[1])),[l for l in r.stderr.splitlines() if 'CONSOLE' in l]

@pytest.fixture(scope='module')
def path(tmp_path_factory): return all_there(tmp_path_factory.mktemp('report')/'report.html')

@pytest.mark.parametrize('width', [390,1280])
def test_it_opens_in_chromium(path, tmp_path, width):
    found,console = looked_at(path, tmp_path, width)
    assert found['width']==width and not console and not found['errors'] and not found['loaded'], (found,console)
    assert found['n_images']==len(re.findall('<img ', path.read_text()))==8 and not found['broken'] and not found['squeezed'], found
    assert found['n_links']>20 and not found['dead'], found
    assert found['page']<=width and not found['wide'], found                 # nothing sticks out, but in boxes that scroll
    assert found['title']=='<b>Title</b>' and not found['injected'] and not found['small'], found

def test_chromium_sees_what_is_broken(path, tmp_path):
    "The test above can fail"
    bad = tmp_path/'bad.html'
    bad.write_text(path.read_text().replace('</main>', '<img src="data:image/png;base64,AAAA" alt=""><img src="http://localhost:9/x.png"><a href="#nowhere">x</a><p style="width:2000px">x</p></main>', 1).replace('<h1>', '<h1><b>x</b>', 1))
    found,console = looked_at(bad, tmp_path, 390)
    assert found['broken']==2 and found['dead']==['nowhere'] and found['page']>390 and any('P' in o for o in found['wide']) and found['errors'] and console and found['injected']

def test_it_prints(path, tmp_path):
    chromium(tmp_path, '--no-pdf-header-footer', f'--print-to-pdf={tmp_path/"r.pdf"}', path.as_uri())
    pdf = (tmp_path/'r.pdf').read_bytes()
    assert pdf.startswith(b'%PDF') and 5<len(re.findall(rb'/Type\s*/Page\b', pdf))<30

# ---- what is in it

def test_pictures_are_whole_pngs_and_names_are_text(path):
    text = path.read_text()
    pngs = [base64.b64decode(o) for o in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    assert all(o.startswith(b'\x89PNG') and o.rstrip().endswith(b'IEND\xaeB`\x82') for o in pngs) and len(pngs)==text.count('<img ')
    for o in nasty: assert html.escape(o, quote=False).replace('"', '&#34;') in text or html.escape(o) in text or o.startswith('$') and o in text.replace('&#39;', "'"), o
    assert '<script' not in text and '49' not in re.findall(r'ä(.*?)ß', text) and 'ä{{ 7*7 }}ß' in text and 'http-equiv="Content-Security-Policy"' in text
    assert not re.search(r'(src|href)="(?!data:|#|https://doi|https://pmc)', text)

def cells(text, caption):
    "A table of the page by its caption"
    block = re.search(rf'<figcaption>{re.escape(html.escape(caption))}.*?(<table>.*?</table>)', text, re.S)
    assert block, caption
    rows = [[html.unescape(re.sub('<.*?>', '', o)) for o in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', r, re.S)] for r in re.findall(r'<tr>(.*?)</tr>', block[1], re.S)]
    return pd.DataFrame([r[1:] for r in rows[1:]], index=[r[0] for r in rows[1:]], columns=rows[0][1:])

def test_numbers_are_those_of_the_measures(path):
    from ols_fastai.calibration.resampling import bootstrap, paired_bootstrap
    from ols_fastai.calibration.metrics import ece, nll
    from ols_fastai.calibration.conformal import ConformalSets
    from ols_fastai.calibration.scaling import fit_temperature, apply_temperature
    text,a,b,patients = path.read_text(),run(2.),run(.6),np.arange(600)//3
    number = lambda v, sign='': f'{v:{sign}.3f}'.replace('-', '\N{MINUS SIGN}')
    m = cells(text, 'Measures with 95 % intervals')
    r = bootstrap({'ECE': lambda s: ece(s)}, a['preds'], a['targs'], groups=patients, n=30, seed=0).iloc[0]
    assert m.loc['ECE (15 bins)','<i>hard</i>']==f'{number(r.value)} ({number(r.low)} to {number(r.high)})'
    d = paired_bootstrap({'NLL': lambda s: nll(s)}, b['preds'], a['preds'], a['targs'], groups=patients, n=30, seed=0).iloc[0]
    star = ' *' if not d.low<=0<=d.high else ''
    assert cells(text, 'Difference to <i>hard</i>').loc['NLL','careful $x$']==f"{number(d.value, '+')} ({number(d.low, '+')} to {number(d.high, '+')}){star}"
    T = fit_temperature(a['valid_preds'], a['valid_targs'])
    s = cells(text, 'Before and after scaling')
    assert s.loc['<i>hard</i>, one temperature','T']==f'{T:.2f}' and s.loc['<i>hard</i>, one temperature','NLL']==number(nll(apply_temperature(a['preds'], T), a['targs']))
    c = ConformalSets(a['valid_preds'], a['valid_targs']).table(a['preds'], a['targs']).iloc[0]
    assert cells(text, 'Sets that may miss 10 %').loc['<i>hard</i>, LAC','coverage']==f'{100*c.coverage:.1f} % ({100*c.low:.1f} % to {100*c.high:.1f} %)'
    data = cells(text, 'What was judged')['value']
    assert data['images judged']=='600' and data['validation images']=='600' and data['patients']=='200' and data['source']=='<u>here</u>'
    settings = cells(text, 'Settings and seeds')
    assert settings.loc['scale'].tolist()==['2','0.6'] and settings.loc['seed'].tolist()==['7','7'] and settings.loc['lists.train'].tolist()==['a<b>.csv']*2
    assert cells(text, 'Versions').loc['torch'].tolist()==['0.0',version('torch')]
    by = cells(text, '<i>hard</i>, by site'); assert by['images'].astype(int).sum()==600 and set(by.index)=={'<i>A</i>','B'}
    wrong = cells(text, '<i>hard</i>: the 8 mistakes')
    row = int(wrong.index[0]); p = a['preds'][row]
    assert wrong.iloc[0]['filename']==f'im<{row}>.png' and wrong.iloc[0]['guess']==nasty[p.argmax()] and wrong.iloc[0]['true class']==nasty[a['targs'][row]]

def test_the_same_run_twice_gives_the_same_page(path, tmp_path):
    strip = lambda p: re.sub(r'on \d{4}-\d\d-\d\d \d\d:\d\d UTC', '', p.read_text())
    assert strip(path)==strip(all_there(tmp_path/'again.html'))

def test_arrays_alone_are_enough(tmp_path):
    r = run(n=60)
    text = calibration_report(tmp_path/'a.html', {'net': (r['preds'].numpy(),r['targs'].numpy())}, n=5).read_text()
    assert 'No settings of the training' in text and 'id="differences"' not in text and 'id="conformal-sets"' not in text and 'id="after-scaling"' not in text
    assert not [o for o in re.findall(r'href="#([^"]+)"', text) if f'id="{o}"' not in text]

def test_many_networks_many_classes_and_perfect_ones(tmp_path):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(165).repeat(2)
    z = 6*torch.nn.functional.one_hot(y, 165)+torch.randn(330, 165, generator=g)
    runs = {f'net {i}': (((1+i/10)*z).softmax(1),y) for i in range(8)}
    text = calibration_report(tmp_path/'a.html', {'perfect': (torch.nn.functional.one_hot(y, 165).double(),y), **runs}, n=3).read_text()
    assert 'perfect makes no mistake' in text and 'The first 6 of 9 networks are drawn' in text and 'net 7 says' in text and 'nan' not in re.sub('base64,[^"]*', '', text)

def test_gaps_of_a_few_images_are_not_marked(tmp_path):
    n = 40
    p = torch.full((n,3), .05)
    guess = torch.tensor([0]*35+[1]*5)                       # all wrong: 35 of them sure, which is no chance, and 5
    p[torch.arange(n),guess] = .9
    sites = pd.DataFrame(dict(site=['big']*35+['small']*5))
    text = calibration_report(tmp_path/'a.html', {'net': dict(preds=p, targs=(guess+1)%3, items=sites)}, n=3, by=['site']).read_text()
    t,s = cells(text, 'net: the 1 guessed classes'),cells(text, 'net, by site')
    assert t.index.tolist()==['0'] and t['gap, points'].tolist()==['+90.0 *'] and s.loc['big','gap, points']=='+90.0 *' and s.loc['small','gap, points']=='+90.0'

# ---- learners

def test_from_a_learner_and_never_on_what_calibrated_it(tmp_path):
    learn = toy_learner()
    learn.dls.loaders.append(learn.dls.valid.new(TensorDataset(*toy_data(120, seed=2))))
    learn.fit(1, .1, cbs=OLSCallback())
    calibrate(learn)
    test = CalibrationInterpretation.from_learner(learn, ds_idx=2)
    text = calibration_report(tmp_path/'a.html', {'ols': test}, n=5).read_text()
    assert 'id="soft-labels"' in text and 'on 60 images' in text and 'no images can be shown' in text and 'Sequential' in text
    on_valid = CalibrationInterpretation(learn, learn.dls.valid, None, preds=learn.get_preds()[0], targs=learn.get_preds()[1])
    with pytest.raises(ValueError, match='60 of its 60 images'): calibration_report(tmp_path/'b.html', {'ols': on_valid}, n=5)
    assert not (tmp_path/'b.html').exists()

def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    fn = tmp_path/'a.html'; fn.write_text('old')
    r = run(n=30)
    with pytest.raises(ValueError, match='not finite'): calibration_report(fn, {'a': dict(r, preds=r['preds']*float('nan'))}, n=3)
    write,written = Path.write_text,[]
    def full(self, text, **kwargs):
        written.append(str(self))
        write(self, text[:99], **kwargs)
        raise OSError('no space left')
    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(OSError, match='no space'): calibration_report(fn, {'a': r}, n=3)
    def other(self, *args, **kwargs): written.append(str(self)); return write(self, *args, **kwargs)
    monkeypatch.setattr(Path, 'write_text', other)
    calibration_report(tmp_path/'b.html', {'a': r}, n=3).unlink()
    assert all(".part" in o for o in written) and len(written)==2   # nothing is ever written to a name that a reader opens
    monkeypatch.undo()
    assert fn.read_text()=='old' and [o.name for o in tmp_path.iterdir()]==['a.html']

@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    "What `make demo` writes: the same command, on fewer images, for one epoch"
    out = tmp_path_factory.mktemp('demo')
    data = brain_regions(out/'data', n_train=4, n_valid=1, n_test=2)
    lists = [o for s in SPLITS for o in (f'--{s}', str(data/f'{s}.csv'))]
    assert ols_compare([*lists, '--arch','small_cnn', '--size','24', '--epochs','1', '--workers','0', '--out',str(out/'demo'), '--quiet'])==0
    return out/'demo/report.html'

@pytest.mark.parametrize('width', [390,1280])
def test_the_report_of_the_demo(demo, tmp_path, width):
    found,console = looked_at(demo, tmp_path, width)
    assert not found['errors'] and not console and not found['loaded'] and not found['dead']
    assert found['n_images']>=8 and not found['broken'] and found['page']<=width
    text = demo.read_text()
    assert all(o in text for o in ('hard labels','label smoothing','online label smoothing')) and '112 images of 56 classes' in text
