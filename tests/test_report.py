"The report, opened in headless Chromium at the width of a phone and of a desk, and what it does with odd names, learners and calibrated networks."
import base64, html, json, re, shutil, subprocess
from importlib.metadata import version
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest, torch
from torch.utils.data import TensorDataset
from fastai.basics import first
from conftest import toy_data, toy_learner
from ols_fastai.train.ols import OLSCallback
from ols_fastai.data.datasets import brain_regions
from ols_fastai.compare.cli import ols_compare
from ols_fastai.calibration.interpretation import CalibrationInterpretation
from ols_fastai.calibration.scaling import calibrate
from ols_fastai.calibration.conformal import ConformalSets
from ols_fastai.calibration.one_class import threshold_table
from ols_fastai.calibration.temperature import apply_temperature, fit_temperature
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
    runs = {'<i>hard</i>': run(2., items=items, images=images), 'careful $x$': run(.6, S=S)}
    return calibration_report(runs, path, title='<b>Title</b>', by=['site'], n=30, data={'source': '<u>here</u>'}, **kwargs)

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
    page = re.sub("; script-src '[^']*'", '', page)
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
    assert found['n_images']==len(re.findall('<img ', path.read_text()))==11 and not found['broken'] and not found['squeezed'], found
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
    assert '<script>document' not in text and '49' not in re.findall(r'ä(.*?)ß', text) and 'ä{{ 7*7 }}ß' in text and 'http-equiv="Content-Security-Policy"' in text
    assert not re.search(r'(src|href)="(?!data:|#|https://doi|https://pmc)', text)

def cells(text, caption):
    "A table of the page by its caption"
    block = re.search(rf'<figcaption>{re.escape(html.escape(caption))}.*?(<table[^>]*>.*?</table>)', text, re.S)
    assert block, caption
    rows = [[html.unescape(re.sub('<.*?>', '', o)) for o in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', r, re.S)] for r in re.findall(r'<tr>(.*?)</tr>', block[1], re.S)]
    return pd.DataFrame([r[1:] for r in rows[1:]], index=[r[0] for r in rows[1:]], columns=rows[0][1:])

def test_numbers_are_those_of_the_measures(path):
    from ols_fastai.calibration.resampling import bootstrap, paired_bootstrap, proportion_interval
    from ols_fastai.calibration.metrics import confidence_gap, ece, in_percent, nll
    from ols_fastai.calibration.page import interval_text
    text,a,b,patients = path.read_text(),run(2.),run(.6),np.arange(600)//3
    number = lambda v, sign='': f'{v:{sign}.3f}'.replace('-', '\N{MINUS SIGN}')
    m = cells(text, 'Measures with 95 % intervals')
    r = bootstrap({'ECE': ece()}, a['preds'], a['targs'], groups=patients, n=30, seed=0).iloc[0]
    assert m.loc['ECE (15 bins)','<i>hard</i>']==f'{number(r.value)} ({number(r.low)} to {number(r.high)})'
    d = paired_bootstrap({'NLL': nll()}, b['preds'], a['preds'], a['targs'], groups=patients, n=30, seed=0).iloc[0]
    star = ' *' if not d.low<=0<=d.high else ''
    assert cells(text, 'Differences with 95 % intervals').loc['NLL','careful $x$ minus <i>hard</i>']==f"{number(d.value, '+')} ({number(d.low, '+')} to {number(d.high, '+')}){star}"
    T = fit_temperature(a['valid_preds'], a['valid_targs'])
    s = cells(text, 'Before and after scaling')
    assert s.loc['<i>hard</i>, one temperature','T']==f'{T:.2f}' and s.loc['<i>hard</i>, one temperature','NLL'].startswith(number(nll(apply_temperature(a['preds'], T), a['targs']))+' (')
    gap = bootstrap({'points': in_percent(confidence_gap)}, apply_temperature(a['preds'], T), a['targs'], groups=patients, n=30, seed=0).iloc[0]
    assert s.loc['<i>hard</i>, one temperature','confidence minus accuracy, points']==interval_text(gap, 'points', True)
    ends = sorted(abs(gap[['low','high']]))
    off = f"{'over' if gap.value>0 else 'under'}-confident by {interval_text(pd.Series(dict(value=abs(gap.value), low=ends[0], high=ends[1])), 'points')} points"
    if gap.low<=0<=gap.high: off = f"no difference shown ({interval_text(gap, 'points', True)} points)"
    assert f"With one temperature ({T:.2f}, fitted to 600 validation images): {off}." in plain(text)
    T_b = fit_temperature(b['valid_preds'], b['valid_targs'])
    d = paired_bootstrap({'NLL': nll()}, apply_temperature(b['preds'], T_b), apply_temperature(a['preds'], T), a['targs'], groups=patients, n=30, seed=0).iloc[0]
    after = cells(text, 'Differences with one temperature each').loc['NLL','careful $x$ minus <i>hard</i>']
    assert after.removesuffix(' *')==f"{number(d.value, '+')} ({number(d.low, '+')} to {number(d.high, '+')})" and after.endswith('*')==(not d.low<=0<=d.high)
    sure = (a['preds'].amax(1)>=.9).numpy()
    right = [f'{100*o:.1f} %' for o in proportion_interval((a['preds'].argmax(1)==a['targs']).numpy()[sure], patients[sure])]
    mean = 100*a['preds'].amax(1)[sure].mean()
    assert f"Of the {sure.sum()} predictions ({100*sure.mean():.0f} % of all) with a confidence of 90 % or more, on average {mean:.1f} %, {right[0]} ({right[1]} to {right[2]}) are right, fewer than they promise." in plain(text)
    hits = ConformalSets(a['valid_preds'], a['valid_targs'])(a['preds']).gather(1, a['targs'][:,None])[:,0]
    c = [f'{100*o:.1f} %' for o in proportion_interval(hits, patients)]
    assert cells(text, 'Sets that may miss 10 %').loc['<i>hard</i>, LAC','coverage']==f'{c[0]} ({c[1]} to {c[2]})'
    data = cells(text, 'What was judged')['value']
    assert data['images judged']=='600' and data['validation images']=='600' and data['patients']=='200' and data['source']=='<u>here</u>'
    settings = cells(text, 'Settings and seeds')
    assert settings.loc['scale'].tolist()==['2','0.6'] and settings.loc['seed'].tolist()==['7','7'] and settings.loc['lists.train'].tolist()==['a<b>.csv']*2
    assert cells(text, 'Versions').loc['torch'].tolist()==['0.0',version('torch')]
    by = cells(text, '<i>hard</i>, by site'); assert by['patients'].tolist()==['200','200'] and by['images'].astype(int).sum()==600 and set(by.index)=={'<i>A</i>','B'}
    wrong = cells(text, '<i>hard</i>, as trained: the 8 mistakes')
    row = int(wrong.index[0]); p = a['preds'][row]
    assert wrong.iloc[0]['file']==f'im<{row}>.png' and wrong.iloc[0]['predicted class']==nasty[p.argmax()] and wrong.iloc[0]['true class']==nasty[a['targs'][row]]

def test_the_same_run_twice_gives_the_same_page(path, tmp_path):
    strip = lambda p: re.sub(r'on \d{4}-\d\d-\d\d \d\d:\d\d UTC', '', p.read_text())
    assert strip(path)==strip(all_there(tmp_path/'again.html'))

def test_arrays_alone_are_enough(tmp_path):
    r = run(n=60)
    text = calibration_report({'net': (r['preds'].numpy(),r['targs'].numpy())}, tmp_path/'a.html', n=5).read_text()
    assert 'No settings of the training' in text and 'id="differences"' not in text and 'id="conformal-sets"' not in text and 'id="after-scaling"' not in text and 'With one temperature' not in text
    assert not [o for o in re.findall(r'href="#([^"]+)"', text) if f'id="{o}"' not in text]

def test_the_summary_says_whose_probabilities_are_the_best(tmp_path):
    from ols_fastai.calibration.metrics import nll
    from ols_fastai.calibration.page import interval_text
    from ols_fastai.calibration.resampling import paired_bootstrap
    def text(runs): return plain(calibration_report(runs, tmp_path/'a.html', n=50).read_text())
    good,sure,blind = run(1.),run(3.),run(1.)
    for k in ('preds','valid_preds'): blind[k] = blind[k].flip(0)
    runs = dict(sure=sure, good=good, blind=blind)
    bare = text({k: dict(preds=o['preds'], targs=o['targs']) for k,o in runs.items()})
    figures = [paired_bootstrap({'NLL': nll()}, o['preds'], good['preds'], o['targs'], n=50, level=1-.05/3).iloc[0] for o in (sure,blind)]
    by_sure,by_blind = (f'by {interval_text(o)}' for o in figures)
    trained = f"good: {nll(good['preds'], good['targs']):.3f}, better beyond chance than sure ({by_sure}) and blind ({by_blind}). Intervals hold 95 % together, for 3 pairs of networks. This is about"
    assert f'By the NLL, which should be small, {trained}' in bare
    assert 'Whose probabilities' not in text({'good': good})
    scaled = text(runs)  # one temperature makes the sure one the same as the good one
    losses = {k: nll(apply_temperature(o['preds'], fit_temperature(o['valid_preds'], o['valid_targs'])), o['targs']) for k,o in runs.items()}
    best = min(losses, key=losses.get)
    other = {'sure': 'good', 'good': 'sure'}[best]
    said = f'By the NLL, which should be small, each with one temperature, {best}: {losses[best]:.3f}, better beyond chance than blind (by '
    assert said in scaled and re.search(rf', not clearly better than {other} \(by [^)]*\)\)\. As trained, ', scaled), scaled[:2500]
    assert f'As trained, {trained}' in scaled

def test_the_best_network_is_shown_where_not_all_are(tmp_path):
    "By the NLL, with a temperature where all have one; of 40 classes the two best networks have a table of classes"
    def shown(text): return re.findall(r'<figcaption>(\w+), as trained: each class against all others', text)
    g = torch.Generator().manual_seed(0)
    z,noise = 2*torch.randn(800, 40, generator=g),torch.randn(800, 40, generator=g)
    y = torch.multinomial(z.softmax(1), 1, generator=g)[:,0]
    runs = {'worst': ((z+3*noise).softmax(1),y), 'second': ((z+noise).softmax(1),y), 'best': ((3*z).softmax(1),y)}
    text = calibration_report(runs, tmp_path/'a.html', n=5).read_text()
    assert shown(text)==['second','best'] and 'Of 3 networks those with the lowest NLL are shown' in text  # as trained, `best` is too sure
    half = {k: dict(preds=p[400:], targs=y[400:], valid_preds=p[:400], valid_targs=y[:400]) for k,(p,y) in runs.items()}
    text = calibration_report(half, tmp_path/'b.html', n=5).read_text()
    assert shown(text)==['best','second'] and 'best, LAC: the' in text and text.count('equally frequent')==0

@pytest.mark.parametrize('valid,says', [('easier','harder'), ('like','')])
def test_images_that_are_harder_than_those_of_the_temperature(tmp_path, valid, says):
    r = run(n=1500)
    y = r['targs'].clone()
    if valid=='easier': y = torch.where(torch.arange(1500)%10<7, r['preds'].argmax(1), y)
    text = plain(calibration_report({'a': dict(r, valid_preds=r['preds'], valid_targs=y)}, tmp_path/'a.html', n=50).read_text())
    assert ('is higher here than there, beyond chance (a: by ' in text and 'these images are harder' in text)==bool(says)

def test_what_the_shares_of_the_classes_alone_would_give(tmp_path):
    y = torch.tensor([0]*30+[1]*10)
    text = plain(calibration_report({'a': (torch.full((40,2), .5),y)}, tmp_path/'a.html', n=5).read_text())
    assert f'has an NLL of {.75*np.log(4/3)+.25*np.log(4):.3f} and a Brier score of 0.375' in text

def test_patients_of_each_class_are_counted(tmp_path):
    y = torch.tensor([0,0,0,0,1,1,1,1])
    items = pd.DataFrame(dict(patient=list('aabbcdef')))
    p = torch.nn.functional.one_hot(y, 2)*.6+.2
    text = calibration_report({'a': dict(preds=p, targs=y, items=items)}, tmp_path/'a.html', n=5).read_text()
    assert cells(text, 'Images per class')[['images','patients']].to_numpy().tolist()==[['4','2'],['4','4']]

def test_classes_are_judged_after_the_temperature_too(tmp_path):
    "A network that is right about all classes but one on average: of this it is far too sure once it is scaled"
    g = torch.Generator().manual_seed(0)
    n,K = 800,4
    y = torch.randint(0, K, (2*n,), generator=g)
    says = torch.where((y==0)&(torch.rand(2*n, generator=g)<.7), 1, y)   # most of class 0 is taken for class 1
    z = torch.nn.functional.one_hot(says, K)*1.2+torch.randn(2*n, K, generator=g)*.05
    p = z.softmax(1)
    site = pd.DataFrame(dict(patient=np.arange(n)))
    r = dict(preds=p[n:], targs=y[n:], valid_preds=p[:n], valid_targs=y[:n], vocab=list('abcd'), items=site)
    text = calibration_report({'net': r}, tmp_path/'a.html', n=20).read_text()
    before,after = cells(text, 'net: the 4 predicted classes'),cells(text, 'net, with one temperature: the 4 predicted classes')
    T = fit_temperature(p[:n], y[:n])
    of_b = apply_temperature(p[n:], T)[says[n:]==1].amax(1).mean()
    assert after.loc['b','mean confidence']==f'{100*of_b:.1f} %' and after.loc['b','gap, points'].startswith('+') and after.loc['b','gap, points'].endswith('*')
    assert before.loc['b','mean confidence']!=after.loc['b','mean confidence'] and before.index.tolist()!=[] and '±' in after['chance, points'].iloc[0]
    said = plain(text)
    gap = 100*(p[n:].amax(1).double().mean()-(p[n:].argmax(1)==y[n:]).double().mean())
    assert f'under-confident by {-gap:.1f} (' in said
    assert re.search(r'With one temperature .{30,150} points\)?\. With it, (no prediction|of the \d+ predictions).{30,150}\. Predicted classes that are off beyond chance once it is scaled: .{0,90}b \(\+', said), said[:1500]

def test_what_is_too_few_to_be_tested_is_said(tmp_path):
    y = torch.tensor([0]*9+[1]*40)
    p = torch.nn.functional.one_hot(y, 3)*.5+.5/3
    items = pd.DataFrame(dict(patient=[i%8 for i in range(49)]))
    said = plain((calibration_report({'net': dict(preds=p, targs=y, items=items)}, tmp_path/'a.html', n=5)).read_text())
    assert 'No predicted class has 10 patients to be judged by.' in said and '1 with fewer than 10 images left out: 0' in said and '†' in said

def test_a_temperature_at_its_edge_is_said_once(tmp_path):
    r = run()
    r['valid_targs'] = r['valid_preds'].argmax(1)  # never wrong: the surer, the better
    text = plain(calibration_report({'a': r}, tmp_path/'a.html', n=5).read_text())
    assert text.count('always right on these 600 images')==1, re.findall('.{60}always right.{60}', text)
    assert 'assumed: no mistake among the 600 validation images)' in text

def test_many_networks_many_classes_and_perfect_ones(tmp_path):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(165).repeat(2)
    z = 6*torch.nn.functional.one_hot(y, 165)+torch.randn(330, 165, generator=g)
    runs = {f'net {i}': (((1+i/10)*z).softmax(1),y) for i in range(8)}
    text = calibration_report({'perfect': (torch.nn.functional.one_hot(y, 165).double(),y), **runs}, tmp_path/'a.html', n=3).read_text()
    assert 'perfect makes no mistake' in text and 'The first 6 of 9 networks are drawn' in text and 'net 7: mean confidence' in text and 'nan' not in re.sub('base64,[^"]*', '', text)

def test_gaps_of_a_few_images_are_not_marked(tmp_path):
    n = 40
    p = torch.full((n,3), .05)
    guess = torch.tensor([0]*35+[1]*5)                       # all wrong: 35 of them sure, which is no chance, and 5
    p[torch.arange(n),guess] = .9
    sites = pd.DataFrame(dict(site=['big']*35+['small']*5))
    text = calibration_report({'net': dict(preds=p, targs=(guess+1)%3, items=sites)}, tmp_path/'a.html', n=3, by=['site']).read_text()
    t,s = cells(text, 'net: the 1 predicted classes'),cells(text, 'net, by site')
    assert 'Of the 40 predictions (100 % of all) with a confidence of 90 % or more, on average 90.0 %, 0.0 %' in plain(text)
    assert 'No prediction has a confidence of 90 % or more' in plain(calibration_report({'net': (p/p.sum(1, keepdim=True)*.5+.5/3,(guess+1)%3)}, tmp_path/'b.html', n=3).read_text())
    assert t.index.tolist()==['0'] and t['gap, points'].tolist()==['+90.0 *'] and s.loc['big','gap, points']=='+90.0 *' and s.loc['small','gap, points']=='+90.0 †'

# ---- learners

def test_from_a_learner_and_never_on_what_calibrated_it(tmp_path):
    learn = toy_learner()
    learn.dls.loaders.append(learn.dls.valid.new(TensorDataset(*toy_data(120, seed=2))))
    learn.fit(1, .1, cbs=OLSCallback())
    calibrate(learn)
    test = CalibrationInterpretation.from_learner(learn, ds_idx=2)
    text = calibration_report({'ols': test}, tmp_path/'a.html', n=5).read_text()
    assert 'id="soft-labels"' in text and 'fitted to 60 images' in text and 'is no image but Tensor' in text and 'Sequential' in text
    preds,targs = learn.get_preds()
    with pytest.raises(ValueError, match='60 of its 60 images'): CalibrationInterpretation(learn, learn.dls.valid, None, preds=preds, targs=targs)

def test_a_learner_tells_its_epochs_and_its_splits(tmp_path):
    from PIL import Image
    from fastai.losses import CrossEntropyLossFlat
    from fastai.learner import Learner
    from ols_fastai.data.loaders import image_dls
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(filename=[f'{i}.png' for i in range(24)], label=['a','b']*12, patient=np.arange(24)//2))
    df['split'] = ['train']*12+['valid']*6+['test']*6
    df.loc[23,'patient'] = 0   # is in training too
    for o in df.filename: Image.fromarray(rng.integers(0, 255, (8,8), dtype=np.uint8)).save(tmp_path/o)
    args = dict(root=tmp_path, size=8, bs=4, num_workers=0, allow_overlap='patient')
    dls = image_dls(df, **args)
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*64, 2)), CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging(): learn.fit(1), learn.fit(3)
    interp = CalibrationInterpretation.from_learner(learn, ds_idx=2)
    text = calibration_report({'net': interp}, tmp_path/'a.html', n=5).read_text()
    data = cells(text, 'What was judged')['value']
    assert [data[f'{o} images'] for o in ('training','validation','test')]==['12','6','6']
    assert data['patients in more than one split']=='1' and 'patients in more than one split: 1' in plain(text)
    assert cells(text, 'Settings and seeds').loc['epochs asked of the last fit'].tolist()==['3']
    # two loaders, and the images judged are in a third
    two = Learner(image_dls(df[df.split!='test'], **args), learn.model, CrossEntropyLossFlat())
    apart = CalibrationInterpretation.from_learner(two, dl=dls[2])
    data = cells(calibration_report(apart, tmp_path/'b.html', n=5, data={'training images':'many'}).read_text(), 'What was judged')['value']
    assert data['test images']=='6' and data['patients in more than one split']=='1' and data['training images']=='many'
    valid = CalibrationInterpretation.from_learner(two)
    data = cells(calibration_report(valid, tmp_path/'c.html', n=5).read_text(), 'What was judged')['value']
    assert data['validation images']=='6' and 'test images' not in data and data['patients in more than one split']=='0'
    assert 'epochs' not in plain((tmp_path/'c.html').read_text())   # of a network that this learner has not trained

def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    fn = tmp_path/'a.html'; fn.write_text('old')
    r = run(n=30)
    with pytest.raises(ValueError, match='not finite'): calibration_report({'a': dict(r, preds=r['preds']*float('nan'))}, fn, n=3)
    write,written = Path.write_text,[]
    def full(self, text, **kwargs):
        written.append(str(self))
        write(self, text[:99], **kwargs)
        raise OSError('no space left')
    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(OSError, match='no space'): calibration_report({'a': r}, fn, n=3)
    def other(self, *args, **kwargs): written.append(str(self)); return write(self, *args, **kwargs)
    monkeypatch.setattr(Path, 'write_text', other)
    calibration_report({'a': r}, tmp_path/'b.html', n=3).unlink()
    assert all(".part" in o for o in written) and len(written)==2   # nothing is ever written to a name that a reader opens
    monkeypatch.undo()
    assert fn.read_text()=='old' and [o.name for o in tmp_path.iterdir()]==['a.html']

# ---- nothing fails for one part's sake, and nothing is said that is not so

def plain(page):
    "The words of a page"
    return html.unescape(' '.join(re.sub('<[^>]+>', ' ', re.sub('base64,[^"]*', '', page)).split()))

def test_before_and_after_calibration(tmp_path):
    "Each says how it was when it was judged"
    learn = toy_learner()
    learn.dls.loaders.append(learn.dls.valid.new(TensorDataset(*toy_data(120, seed=2))))
    learn.fit(1, .1)
    before = CalibrationInterpretation.from_learner(learn, ds_idx=2)
    on_valid = CalibrationInterpretation.from_learner(learn, ds_idx=1)
    calibrate(learn)
    after = CalibrationInterpretation.from_learner(learn, ds_idx=2)
    text = calibration_report({'before': before, 'after': after}, tmp_path/'a.html', n=5).read_text()
    row = cells(text, 'Settings and seeds').loc['calibrated'].tolist()
    assert row[0]=='no' and re.fullmatch(r'one temperature, \d\.\d\d, fitted to 60 images', row[1]), row
    assert 'fitted to 60 images' in cells(text, 'Items of the guidelines').loc['TRIPOD+AI 12f, 24','answered']
    assert 'after it was judged' in plain(text)   # for its scaling the network of before is gone
    calibration_report({'judged before it calibrated': on_valid}, tmp_path/'b.html', n=5)

def test_the_line_of_the_readme(tmp_path, monkeypatch):
    "The path may be left out; a learner's validation set gives scaling and sets"
    monkeypatch.chdir(tmp_path)
    learn = toy_learner()
    learn.dls.loaders.append(learn.dls.valid.new(TensorDataset(*toy_data(120, seed=2))))
    learn.fit(1, .1, cbs=OLSCallback())
    interp = CalibrationInterpretation.from_learner(learn, ds_idx=2)
    text = calibration_report({'OLS': interp}, n=5).read_text()
    assert (tmp_path/'report.html').is_file() and 'id="conformal-sets"' in text
    preds,targs = learn.get_preds(ds_idx=1)
    from ols_fastai.calibration.temperature import fit_temperature
    assert cells(text, 'Before and after scaling').loc['OLS, one temperature','T']==f'{fit_temperature(preds, targs):.2f}'
    text = calibration_report({'OLS': CalibrationInterpretation.from_learner(learn)}, n=5).read_text()   # the validation set itself was judged
    assert 'id="conformal-sets"' not in text and 'give valid_preds and valid_targs' in plain(text)
    assert calibration_report(interp, n=5)==Path('report.html')
    with pytest.raises(ValueError, match='the runs come first'): calibration_report('report.html', {'OLS': interp})

def test_the_true_class_is_refused_before_anything_is_written(tmp_path):
    r = run(n=90)
    items = pd.DataFrame(dict(label=np.array(r['vocab'])[r['targs']]))
    with pytest.raises(ValueError, match="by='predicted'"): calibration_report({'a': dict(r, items=items)}, tmp_path/'a.html', by=['label'], n=3)
    assert not list(tmp_path.iterdir())

def test_everything_is_by_patient_or_says_so(tmp_path):
    "A calibrated network, 60 patients of 10 like images: hardly a star, and no sentence that is not so"
    from ols_fastai.calibration.resampling import proportion_interval
    stars = {True: 0, False: 0}
    for seed in range(6):
        r = np.random.default_rng(seed)
        q = r.dirichlet([.7]*4, 60)
        y = np.array([r.choice(4, p=o) for o in q])
        items = pd.DataFrame(dict(patient=np.arange(60)))
        p,y,items = q.repeat(10, 0),y.repeat(10),items.loc[np.arange(60).repeat(10)].reset_index(drop=True)
        for by_patient in stars:
            valid = r.dirichlet([.7]*4, 60)
            run = dict(preds=p, targs=y, items=items, valid_preds=valid, valid_targs=valid.argmax(1))
            text = calibration_report({'net': run}, tmp_path/'a.html', n=5, groups=None if by_patient else False).read_text()
            t = cells(text, 'net: the 4 predicted classes')
            stars[by_patient] += t['gap, points'].str.contains(r'\*').sum()
            words = plain(text)
            assert ('patients' in t)==by_patient and (cells(text, 'What was judged')['value'].get('patients')=='60')==by_patient
            assert ('Intervals are by patients' in words)==by_patient and ('Images are taken as independent' in words)!=by_patient
            hits = ConformalSets(torch.tensor(valid), torch.tensor(valid.argmax(1)))(torch.tensor(p)).gather(1, torch.tensor(y)[:,None])[:,0]
            low,high = (f'{100*o:.1f} %' for o in proportion_interval(hits, np.arange(600)//10 if by_patient else None)[1:])
            assert f'({low} to {high})' in cells(text, 'Sets that may miss 10 %').loc['net, LAC','coverage']
    assert stars[True]<=2 and stars[False]>=8, stars

def test_one_networks_trouble_is_its_own(tmp_path):
    "Sets, scaling, images and predictions of one network fail: the others have theirs, and the page says what is missing"
    before,good,bad = plt.get_fignums(),run(n=90),run(n=90, seed=1)
    bad = dict(bad, targs=good['targs'], valid_preds=bad['valid_preds']*float('nan'))
    def gone(i): raise FileNotFoundError(f'{i}.png')
    def broken(i): raise RuntimeError('decoder')
    runs = {'diverged': dict(good, preds=good['preds']*float('nan')), 'good': good, 'no sets': bad, 'gone': dict(good, images=gone), 'broken': dict(good, images=broken)}
    text = calibration_report(runs, tmp_path/'a.html', n=5).read_text()
    words = plain(text)
    assert 'Parts of this report are missing, and why' in words and 'diverged is left out: row 0: preds are not finite' in words
    assert 'no sets, scaling: row 0: preds are not finite' in words and 'no sets, conformal sets: row 0' in words
    assert list(cells(text, 'Measures with 95 % intervals').columns)==['good','no sets','gone','broken']
    assert {o.split(',')[0] for o in cells(text, 'Sets that may miss').index}=={'good','gone','broken'}
    assert 'no sets: mean confidence' in words and words.count('validation images): ')==3
    assert 'no sets minus good' in words and 'diverged minus' not in words
    assert 'gone: the images of this table' in words and 'broken: the images of this table' in words   # each place says what became of its file
    assert plt.get_fignums()==before

def test_damaged_images_and_odd_file_names(tmp_path):
    "Bytes that are no UTF-8 in names of files, classes and sites; a file that is cut"
    from PIL import Image
    odd = b'scan\xff'.decode('utf-8', 'surrogateescape')
    r = run(n=60)
    (tmp_path/'cut.png').write_bytes(b'\x89PNG\r\n')
    items = pd.DataFrame(dict(filename=[odd+'.png']*60, site=[odd,'b']*30), dtype=object)
    r = dict(r, vocab=[odd,*r['vocab'][1:]], items=items, images=lambda i: Image.open(tmp_path/'cut.png'), settings={'list': odd})
    text = calibration_report({odd: r, 'b': dict(r)}, tmp_path/'a.html', n=5, by=['site'], data={'root': odd}, title=odd).read_text(encoding='utf-8')
    assert 'scan\\udcff.png' in text and 'id="confident-mistakes"' in text and 'Parts of this report are missing' not in text

@pytest.mark.parametrize('kind', ['collapsed','perfect','always wrong','rounded','one image'])
def test_predictions_of_every_kind(tmp_path, kind):
    "Equal predictions are not equal images, and a network without a mistake, or with nothing else, has a report"
    g = torch.Generator().manual_seed(0)
    n = 1 if kind=='one image' else 120
    y,valid = torch.randint(0, 3, (n,), generator=g),torch.randint(0, 3, (120,), generator=g)
    def preds(y):
        if kind=='collapsed': return torch.tensor([[.5,.3,.2]]).repeat(len(y), 1)
        if kind=='always wrong': return torch.eye(3)[(y+1)%3]
        p = torch.eye(3)[y]
        return p if kind=='perfect' else (.4*p+.2) if kind=='rounded' else .6*p+.4/3
    runs = {'odd': dict(preds=preds(y), targs=y, valid_preds=preds(valid), valid_targs=valid),
            'plain': dict(preds=torch.softmax(torch.randn(n, 3, generator=g), 1), targs=y)}
    words = plain(calibration_report(runs, tmp_path/'a.html', n=5).read_text())
    assert 'Limits' in words and 'odd: mean confidence' in words or kind=='one image', words
    assert 'nan' not in words.lower().split() and 'Top-5 error' not in cells((tmp_path/'a.html').read_text(), 'Measures').index

def test_a_table_of_many_classes_is_sorted_in_the_page(tmp_path):
    "By the one script that the page's own policy lets through"
    y = torch.arange(40).repeat_interleave(torch.arange(1, 41))
    p = torch.softmax(3*torch.nn.functional.one_hot(y, 40)+torch.randn(len(y), 40, generator=torch.Generator().manual_seed(0)), 1)
    page = calibration_report({'net': (p,y)}, tmp_path/'a.html', n=3).read_text()
    assert page.count('<script')==1 and "script-src 'sha256-" in page and 'unsafe-inline' not in page.split('script-src')[1][:60]
    assert cells(page, 'Images per class').index[0]=='39'
    def shown(text):
        (tmp_path/'page.html').write_text(text)
        r = chromium(tmp_path, '--virtual-time-budget=5000', '--dump-dom', (tmp_path/'page.html').as_uri())
        return r.stdout,[l for l in r.stderr.splitlines() if 'CONSOLE' in l]
    dom,console = shown(page)
    assert not console and len(re.findall('<thead>.*?<button', dom, re.S))>=1
    other,console = shown(page.replace('</main>', '<script>document.title = "pwned"</script></main>'))
    assert any('Content Security Policy' in o for o in console) and '<title>pwned' not in other
    click = "for (const b of document.querySelectorAll('table.sortable button')) if (b.textContent === 'images') b.click();"   # as a reader would, allowed here by loosening the policy
    loose = re.sub("script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", page).replace('</body>', f'<script>{click}</script></body>')
    dom,console = shown(loose)
    first_row = re.search(r'aria-sort="ascending".*?<tbody>\s*<tr><th scope="row">(.*?)</th>', dom, re.S)
    assert not console and first_row[1]=='0', console

@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    "What `make demo` writes: the same command, on fewer images, for one epoch"
    out = tmp_path_factory.mktemp('demo')
    data = brain_regions(out/'data', n_train=4, n_valid=1, n_test=2)
    with pytest.MonkeyPatch.context() as m:
        m.setattr('ols_fastai.compare.command.brain_regions', lambda: data)
        assert ols_compare(['--data','brain_regions', '--arch','small_cnn', '--size','24', '--epochs','1', '--workers','0', '--out',str(out/'demo'), '--quiet'])==0
    return out/'demo/report.html'

@pytest.mark.parametrize('width', [390,1280])
def test_the_report_of_the_demo(demo, tmp_path, width):
    found,console = looked_at(demo, tmp_path, width)
    assert not found['errors'] and not console and not found['loaded'] and not found['dead']
    assert found['n_images']>=8 and not found['broken'] and found['page']<=width
    text = demo.read_text()
    assert all(o in text for o in ('hard labels','label smoothing','online label smoothing')) and '112 images, 56 classes' in text
    assert 'not of other brains' in text and 'is not known to this page' not in text   # all images are of two
    assert '<h1>Calibration report: brain_regions</h1>' in text and re.search(r'online label smoothing; \d{4}-\d\d-\d\d<', text)
    assert 'Those in predictions.csv are after the temperature.' in text

def test_a_part_that_fails_in_any_way_leaves_a_note():
    from ols_fastai.calibration.page import attempt, paragraph
    missing = []
    blocks = attempt('part', lambda: 1/0, missing) + attempt('other', lambda: [paragraph('fine'), None], missing)
    assert [o['text'] for o in blocks]==['Missing here: part: ZeroDivisionError: division by zero','fine'] and missing==['part: ZeroDivisionError: division by zero']
    with pytest.raises(KeyboardInterrupt): attempt('stopped', lambda: (_ for _ in ()).throw(KeyboardInterrupt()), missing)

def test_what_takes_long_says_how_far_it_is(tmp_path, monkeypatch, capfd):
    from ols_fastai.calibration import report
    r = run(n=60)
    one = {'net': (r['preds'],r['targs'])}
    monkeypatch.setenv('FORCE_COLOR', '1')  # as in a terminal
    calibration_report(one, tmp_path/'a.html', n=5)
    assert not capfd.readouterr().err
    monkeypatch.setattr(report, '_long', 360)
    calibration_report(one, tmp_path/'a.html', n=5)
    said = capfd.readouterr().err
    assert 'Calibration report: ' in said and '100%' in said

def test_three_networks_are_compared_in_pairs(tmp_path):
    "Of three all pairs, of four each with the first; differences of classes and of losses after a temperature have signs that a reader can check"
    from ols_fastai.calibration.metrics import nll
    from sklearn.metrics import roc_auc_score
    g = torch.Generator().manual_seed(0)
    z,noise = 2*torch.randn(900, 3, generator=g),torch.randn(3, 900, 3, generator=g)
    y = torch.multinomial(z.softmax(1), 1, generator=g)[:,0]
    def net(scale, i): return dict(preds=(scale*(z+i*noise[i-1])).softmax(1)[450:], targs=y[450:], valid_preds=(scale*(z+i*noise[i-1])).softmax(1)[:450], valid_targs=y[:450], vocab=list('xyz'))
    runs = {'a': net(1, 1), 'b': net(2, 2), 'c': net(.5, 3)}
    text = calibration_report(runs, tmp_path/'r.html', n=40).read_text()
    d = cells(text, 'Differences with 95 % intervals, as trained')
    assert list(d)==['b minus a','c minus a','c minus b']
    loss = {k: nll(o['preds'], o['targs']) for k,o in runs.items()}
    assert d.loc['NLL','c minus b'].startswith(f"{loss['c']-loss['b']:+.3f}".replace('-', '\N{MINUS SIGN}')) and not d.loc['NLL','c minus b'].startswith(d.loc['NLL','b minus a'][:6])
    fitted = {k: nll(apply_temperature(o['preds'], fit_temperature(o['valid_preds'], o['valid_targs'])), o['targs']) for k,o in runs.items()}
    scaled = cells(text, 'Differences with one temperature each')
    assert list(scaled)==list(d) and scaled.loc['NLL','c minus b'].startswith(f"{fitted['c']-fitted['b']:+.3f}".replace('-', '\N{MINUS SIGN}'))
    change = cells(text, 'Before and after scaling')['NLL, change']
    assert change['b, as trained']=='–' and change['b, one temperature'].startswith(f"{fitted['b']-loss['b']:+.3f}".replace('-', '\N{MINUS SIGN}')) and change['b, one temperature'].endswith(' *')
    of_y = cells(text, 'c minus b, each class against the rest')
    areas = [roc_auc_score(y[450:]==1, runs[k]['preds'][:,1]) for k in 'cb']
    assert of_y.loc['y','AUROC'].startswith(f'{areas[0]-areas[1]:+.3f}'.replace('-', '\N{MINUS SIGN}')) and of_y.index.tolist()==list('xyz')
    four = calibration_report({**runs, 'd': net(1, 2)}, tmp_path/'s.html', n=5).read_text()
    assert list(cells(four, 'Differences with 95 % intervals, as trained'))==['b minus a','c minus a','d minus a']

def test_intervals_of_classes_differences_hold_together(tmp_path):
    "Wider than that of one class by itself"
    from ols_fastai.calibration.classes import macro_difference
    a,b = run(1.),run(.4, seed=0)
    b['preds'] = (b['preds']+torch.rand(600, 6, generator=torch.Generator().manual_seed(3))*.3); b['preds'] /= b['preds'].sum(1, keepdim=True)
    text = calibration_report({'a': dict(a, vocab=list('uvwxyz')), 'b': dict(b, vocab=list('uvwxyz'))}, tmp_path/'r.html', n=5).read_text()
    said = cells(text, 'b minus a, each class against the rest').loc['w','AUROC'].replace('\N{MINUS SIGN}', '-')
    y = (a['targs']==2)[:,None].long()
    want = macro_difference(b['preds'][:,[2]], a['preds'][:,[2]], y, level=1-.05/6).loc['macro AUROC']
    assert said.startswith(f'{want.value:+.3f} ({want.low:+.3f} to {want.high:+.3f})')

def test_the_mistakes_that_all_networks_make_are_named(tmp_path):
    r = run()
    vocab = list('uvwxyz')
    y = r['targs'].clone()
    right = torch.nn.functional.one_hot(y, 6)*.9+.1/6
    preds = {k: right.clone() for k in 'ab'}
    wrong = torch.nn.functional.one_hot((y+1)%6, 6)*.9+.1/6
    for k in 'ab': preds[k][[5,9]] = wrong[[5,9]]
    preds['a'][5] = .9*wrong[5]+.1/6     # less sure of the first
    preds['b'][40] = wrong[40]           # a mistake of one network alone
    preds['a'][50] = wrong[50]; preds['b'][50] = torch.nn.functional.one_hot((y[50]+2)%6, 6)*.9+.1/6  # two mistakes that differ
    items = pd.DataFrame(dict(filename=[f'im{i}.png' for i in range(600)]))
    runs = {k: dict(preds=p, targs=y, vocab=vocab, items=items) for k,p in preds.items()}
    assert 'Both networks make the same mistake in 2 of 600 images, the surest first: im9.png, im5.png.' in plain(calibration_report(runs, tmp_path/'r.html', n=5).read_text())
    findings = {k: dict(preds=torch.tensor([[.9,.2],[.06,.9+q],[.8,.7],[.2,.1]]), targs=torch.tensor([[1,0],[1,0],[1,1],[1,0]]), vocab=['mass','nodule']) for k,q in (('a',.05),('b',0.))}
    assert 'see a finding, with a probability of 90 % and more, that is not in the labels in 1 of 4 images, the surest first: row 1.' in plain(calibration_report(findings, tmp_path/'f.html', n=5).read_text())

def test_the_accuracy_of_a_group_has_an_interval_by_patient(tmp_path):
    from ols_fastai.calibration.resampling import proportion_interval
    r = run()
    items = pd.DataFrame(dict(site=np.where(np.arange(600)%3, 'A', 'B'), patient=np.arange(600)//6))
    text = calibration_report({'a': dict(r, items=items)}, tmp_path/'r.html', by=['site'], n=5).read_text()
    of = (items.site=='B').to_numpy()
    right = (r['preds'].argmax(1)==r['targs']).numpy()[of]
    v,low,high = (f'{100*o:.1f} %' for o in proportion_interval(right, items.patient.to_numpy()[of]))
    assert cells(text, 'a, by site').loc['B','accuracy']==f'{v} ({low} to {high})'

def test_harder_images_are_compared_with_the_validation_images_own_gap():
    "A temperature does not make the gap of the validation images 0: a network that is surer than right there, and as much here, has harder images nowhere"
    from ols_fastai.calibration.measure_sections import _moved
    from ols_fastai.calibration.sections import Report
    from ols_fastai.calibration.metrics import confidence_gap
    g = torch.Generator().manual_seed(0)
    p = torch.where((torch.arange(2000)%2==0)[:,None], torch.tensor([.99,.005,.005]), torch.tensor([.45,.4,.15]))
    y = torch.multinomial(torch.tensor([[.8,.1,.1],[.75,.15,.1]]), 1000, True, generator=g).T.reshape(-1)  # sure and unsure ones are right as often
    R = Report({'a': CalibrationInterpretation.from_preds(p, y, list('xyz'))}, {'a': dict(valid_preds=p, valid_targs=y)}, n=50)
    T = fit_temperature(p, y); there = confidence_gap(apply_temperature(p, T), y)
    assert abs(there)>.005 and abs(_moved(R, 'a').value)<1e-9   # the same images: not moved, whatever their gap is

def test_the_classes_that_are_found_least_and_said_wrongly_stand_in_the_summary(tmp_path):
    "c is found in 4 of 12 and is never said wrongly; b is said 20 times, 12 of them rightly; d has too few images"
    y,said = torch.tensor([0]*30+[1]*12+[2]*12+[3]*2),torch.tensor([0]*30+[1]*12+[2]*4+[1]*8+[0]*2)
    p = torch.nn.functional.one_hot(said, 4)*.6+.1
    text = plain(calibration_report({'net': dict(preds=p, targs=y, vocab=list('abcd'))}, tmp_path/'r.html', n=5).read_text())
    assert 'Of classes with 10 images and more it finds c (33.3 % (13.8 % to 60.9 %)) least often. It is right least often where it says b (60.0 % (38.7 % to 78.1 %)) (said of fewer than 10 images: c).' in text
    assert re.search(r'<li>net: mean confidence [^<]*<br>[^<]*<br>', (tmp_path/'r.html').read_text())  # a line a thought

def test_the_error_of_the_surest_is_told(tmp_path):
    p = torch.tensor([[.9,.1]]*5+[[.8,.2]]*5+[[.7,.3]]*10); y = torch.tensor([0]*4+[1]+[0]*3+[1]*2+[0]*5+[1]*5)
    t = cells(calibration_report({'net': (p,y)}, tmp_path/'r.html', n=5).read_text(), 'Error among the most confident')
    assert t.loc['net'].tolist()==['20.0 %','30.0 %','40.0 %','40.0 %'] and list(t)==['20 % kept','50 % kept','80 % kept','100 % kept']

def two_classes(scale=1., n=400, seed=0):
    "A network of two classes with its validation images; with `scale` 0 one that has learnt nothing"
    rng = np.random.default_rng(seed)
    z = rng.normal(-.5, 1.5, 2*n)
    y = torch.tensor((rng.random(2*n)<1/(1+np.exp(-z))).astype(int))
    f = torch.tensor(1/(1+np.exp(-(scale*z-.8))))
    p = torch.stack([1-f, f], 1).float()
    return dict(preds=p[:n], targs=y[:n], valid_preds=p[n:], valid_targs=y[n:], vocab=['no','yes'])

def test_two_classes_have_thresholds_chosen_on_validation_images_and_a_picture(tmp_path):
    r = two_classes()
    page = plain(calibration_report({'a': r}, tmp_path/'a.html', n=20).read_text())
    found = r['valid_preds'][:,1][r['valid_targs']==1].sort(descending=True).values
    t = found[int(np.ceil(.95*len(found)))-1]
    above,there = r['preds'][:,1]>=t,r['targs']==1
    row = re.search(r'yes, 95 %\s+(\d+)\s+([\d.]+)\s+([\d.]+)\s+(\d+) \(', page)
    T = fit_temperature(r['valid_preds'], r['valid_targs'])
    scaled = apply_temperature(torch.stack([1-t, t])[None], T)[0,1].item()
    assert int(row[1])==len(found) and 0<=float(t)-float(row[2])<.01*t and 0<=scaled-float(row[3])<.01*scaled   # rounded down
    assert int(row[4])==round(100*float(above[there].float().mean()))
    assert 'the highest threshold that finds the share of a class, chosen on so many images with it of the validation images' in page and page.count('a, yes.')+page.count('a, no.')==1
    del r['valid_preds'],r['valid_targs']
    assert 'of these images, so that the sensitivity looks better than it is' in plain(calibration_report({'a': r}, tmp_path/'a.html', n=20).read_text())
    few = two_classes(n=16, seed=5)
    assert few['valid_targs'].sum()<10<(few['valid_targs']==0).sum()
    page = plain(calibration_report({'a': few}, tmp_path/'a.html', n=20).read_text())
    assert 'no, 90 %' in page and 'yes, 90 %' not in page

def test_three_classes_have_thresholds_of_the_probabilities_after_the_temperature(tmp_path):
    "As predictions.csv and a calibrated network have them; without validation images as trained"
    r = dict(run(3., K=3), vocab=list('abc'))
    T = fit_temperature(r['valid_preds'], r['valid_targs'])
    p,valid = (apply_temperature(r[o], T) for o in ('preds','valid_preds'))
    t = threshold_table(p, r['targs'], (valid,r['valid_targs']), wanted=(.9,.95))
    page = calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text()
    shown = cells(page, f'net, with one temperature ({T:.2f}): the highest threshold')
    assert len(shown)==len(t.threshold.groupby(level=0).unique().explode())
    assert shown['false alarms'].tolist()==[f'{o:,.0f}' for o in t[~t.threshold.groupby(level=0).transform(pd.Series.duplicated)]['false alarms']]
    assert t.loc[(0,.9),'false alarms']==int(((p[:,0]>=t.loc[(0,.9),'threshold'])&(r['targs']!=0)).sum())
    for (k,share),row in t[~t.threshold.groupby(level=0).transform(pd.Series.duplicated)].iterrows():
        said = shown.loc[f'{r["vocab"][k]}, {100*share:.0f} %']
        assert 0<=row.threshold-float(said['from probability'])<.01*row.threshold and said['sensitivity %'].startswith(f'{100*row.sensitivity:.0f} (')
    assert 'the same after T' not in page
    del r['valid_preds'],r['valid_targs']
    assert 'net, as trained: the highest threshold' in calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text()
    for K,there in ((10,True), (11,False)):
        page = calibration_report({'net': dict(run(K=K), vocab=list('abcdefghijk')[:K])}, tmp_path/'a.html', n=5).read_text()
        assert ('the highest threshold' in page)==there!=('threshold_table of a CalibrationInterpretation gives them' in page)

def test_the_sure_predictions_are_told_after_the_temperature_too(tmp_path):
    r = two_classes(3.)
    T = fit_temperature(r['valid_preds'], r['valid_targs'])
    confidence,said = apply_temperature(r['preds'], T).max(1)
    sure = confidence>=.9
    right = 100*float((said==r['targs'])[sure].double().mean())
    page = plain(calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text())
    assert f'With it, of the {int(sure.sum())} predictions ({100*float(sure.double().mean()):.0f} % of all) with a confidence of 90 % or more, on average {100*float(confidence[sure].mean()):.1f} %, {right:.1f} % (' in page
    assert 'predictions.csv' not in page
    page = plain(calibration_report({'net': r}, tmp_path/'a.html', n=5, data={'predictions.csv': 'with T'}).read_text())
    assert 'unless one is named. Those in predictions.csv are after the temperature.' in page

def test_sets_of_one_class_are_judged_by_the_class_that_they_name(tmp_path):
    r = dict(run(3., K=3), vocab=list('abc'))
    sets = ConformalSets(r['valid_preds'], r['valid_targs'], .1, 'aps')(r['preds'])
    alone,named = sets.sum(1)==1,sets.double().argmax(1)
    shown = cells(calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text(), 'Sets of one class, APS, by the class that they name; the worst first')
    rights = []
    for i,k in enumerate('abc'):
        of = alone&(named==i)
        rights.append(100*float((r['targs'][of]==i).double().mean()))
        assert shown.loc[k,'net, sets']==str(int(of.sum())) and shown.loc[k,'net, right'].startswith(f'{rights[-1]:.1f} % (')
    assert shown.index.tolist()==[k for _,k in sorted(zip(rights, 'abc'))] and len(set(rights))==3
    many = dict(run(K=20), vocab=[f'c{i}' for i in range(20)])
    page = calibration_report({'net': many}, tmp_path/'a.html', n=5).read_text()
    assert len(cells(page, 'Sets of one class, APS, by the class that they name; the 15 of 20 that are right least often'))==15

def test_mistakes_and_reliability_are_shown_with_the_temperature_too(tmp_path):
    r = dict(run(3., K=3), vocab=list('abc'))
    T = fit_temperature(r['valid_preds'], r['valid_targs'])
    after = apply_temperature(r['preds'], T)
    wrong = r['preds'].argmax(1)!=r['targs']
    page = calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text()
    surest = f'{100*float(after[wrong].max()):.1f} %'
    t = cells(page, 'net, as trained: the 8 mistakes with the highest confidence; with its temperature the surest mistake of all has '+surest)
    assert t['with temperature'].tolist()==[f'{100*float(after[int(i)].max()):.1f} %' for i in t.index]
    assert 'Reliability diagram with one temperature each: net has an ECE of' in page and 'Measures with 95' in page
    assert 'net, as trained: bars show' in plain(page) and 'Measures with 95 % intervals, as trained; 15 bins' in plain(page)
    del r['valid_preds'],r['valid_targs']
    page = calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text()
    assert 'with temperature' not in page and 'Reliability diagram with one temperature' not in page

def test_thresholds_say_how_many_patients_are_found_and_alarmed(tmp_path):
    "By any of their images; a patient may have one of each class, and then counts as one who has it"
    r = dict(run(3., K=3), vocab=list('abc'))
    patient = np.random.default_rng(0).permutation(np.arange(600)//3)
    r['items'] = pd.DataFrame(dict(patient=patient))
    T = fit_temperature(r['valid_preds'], r['valid_targs'])
    p,valid = (apply_temperature(r[o], T) for o in ('preds','valid_preds'))
    t = threshold_table(p, r['targs'], (valid,r['valid_targs']), wanted=(.9,)).threshold
    text = calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text()
    shown = cells(text, f'net, with one temperature ({T:.2f}): the highest threshold')
    for i,k in enumerate('abc'):
        who = pd.DataFrame(dict(above=(p[:,i]>=t[i,.9]).numpy(), there=(r['targs']==i).numpy())).groupby(patient).any()
        row = shown.loc[f'{k}, 90 %']
        assert row['patients found']==f'{(who.above&who.there).sum()} of {who.there.sum()}'
        assert row['and alarmed']==f'{(who.above&~who.there).sum()} of {(~who.there).sum()}'
    assert 'patients are found, or alarmed, by any of their images' in plain(text)
    del r['items']
    assert 'and alarmed' not in calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text()

def three_sites(n=600, sure=3., seed=0):
    "A network that is surer at one site than at the others, and its validation images"
    g = torch.Generator().manual_seed(seed)
    z = 2*torch.randn(2*n, 3, generator=g)
    y = torch.multinomial(z.softmax(1), 1, generator=g)[:,0]
    site = np.resize(['A','B','C'], n)
    p = (z*torch.tensor(np.resize([sure,1.,1.], 2*n))[:,None]).softmax(1).float()
    items = pd.DataFrame(dict(site=site, filename=[f'{i}.png' for i in range(n)]))
    return dict(preds=p[n:], targs=y[n:], valid_preds=p[:n], valid_targs=y[:n], vocab=['cyst','mass','normal'], items=items)

def test_groups_that_are_off_stand_in_the_summary_as_trained_and_scaled(tmp_path):
    from ols_fastai.calibration.groups import calibration_by
    r = three_sites()
    page = plain(calibration_report({'net': r}, tmp_path/'a.html', n=5, by='site').read_text())
    T = fit_temperature(r['valid_preds'], r['valid_targs'])
    after = calibration_by(apply_temperature(r['preds'], T), r['targs'], r['items'].site)
    before = calibration_by(r['preds'], r['targs'], r['items'].site)
    assert before.p_holm['A']<.05<before.p_holm.drop('A').min() and (after.p_holm<.05).all()
    def named(t): return ', '.join(f'{k} ({100*v:+.1f} points)' for k,v in t.gap[t.p_holm<.05].items()).replace('-', '\N{MINUS SIGN}')
    assert f'By site, off beyond chance: {named(before)}; with one temperature {named(after)}.' in page
    assert 'Holm' in page[page.index('In brackets'):][:500]
    shown = cells((tmp_path/'a.html').read_text(), 'net, with one temperature, by site')
    assert shown['gap, points'].str.strip(' *').tolist()==[f'{100*v:+.1f}'.replace('-', '\N{MINUS SIGN}') for v in after.gap]
    del r['valid_preds'],r['valid_targs']
    page = plain(calibration_report({'net': r}, tmp_path/'a.html', n=5, by='site').read_text())
    assert f'By site, off beyond chance: {named(before)}. ' in page and 'with one temperature, by site' not in page
    r['preds'] = three_sites(sure=1.)['preds']
    assert 'By site, off beyond chance: none.' in plain(calibration_report({'net': r}, tmp_path/'a.html', n=5, by='site').read_text())

def test_a_class_that_is_made_of_others_is_pointed_out(tmp_path):
    r = three_sites()
    def said(*vocab):
        page = plain(calibration_report({'net': dict(r, vocab=list(vocab))}, tmp_path/'a.html', n=5).read_text())
        return re.findall(r'(\S+(?: and \S+)?) is a class of its own here: an image of it counts against ([^.]*)\.', page)
    assert said('normal','nodule','Nodule+effusion')==[('Nodule+effusion','nodule')]
    assert said('cyst','mass','cyst and mass')==[('cyst and mass','cyst, mass')]
    assert not said('normal','nodule','nodule-effusion') and not said('a/b','c','d')

def test_a_network_with_a_temperature_beside_one_without_is_said(tmp_path):
    from ols_fastai.calibration.calibrated import CalibratedModel
    learn = toy_learner()
    with learn.no_bar():
        bare = CalibrationInterpretation.from_learner(learn)
        own = toy_learner()
        own.model = CalibratedModel(learn.model, scale=.5)
        own.model.used = torch.ones(3, 2).long(); own.model._note()
        done = CalibrationInterpretation.from_learner(own)
    page = plain(calibration_report({'bare': bare, 'done': done}, tmp_path/'a.html', n=5).read_text())
    assert page.count('Only done of these networks was calibrated')==2
    assert page.count('Only ')==2 and 'were calibrated' not in page
    page = plain(calibration_report({'bare': bare, 'again': bare}, tmp_path/'a.html', n=5).read_text())
    assert 'of these networks' not in page

def test_a_network_without_validation_images_is_named_where_it_is_left_out(tmp_path):
    r = three_sites()
    alone = {k: v for k,v in r.items() if not k.startswith('valid')}
    page = plain(calibration_report({'a': r, 'b': alone}, tmp_path/'a.html', n=5).read_text())
    assert page.count('Not of b: no validation images are at hand that have not calibrated it.')==2
    assert 'Not of' not in plain(calibration_report({'a': r, 'b': r}, tmp_path/'a.html', n=5).read_text())

def test_of_few_sure_predictions_nothing_is_said_but_their_number(tmp_path):
    "Eight are right in two: of so few, or of nine patients, it is not said that they promise too much"
    def said(n, **kwargs):
        p = torch.cat([torch.tensor([[.95,.05]]*n), torch.tensor([[.6,.4]]*30)])
        y = torch.tensor([0]*(n//4)+[1]*(n-n//4)+[0]*30)
        return plain(calibration_report({'net': dict(preds=p, targs=y, **kwargs)}, tmp_path/'r.html', n=5).read_text())
    assert 'are right, of too few images to say more.' in said(8) and 'fewer than they promise' in said(16)
    who = pd.DataFrame(dict(patient=np.r_[np.arange(16)//2, 100+np.arange(30)]))
    assert 'are right, of too few patients to say more.' in said(16, items=who)

def test_sets_of_one_class_are_counted_and_how_many_of_them_are_right(tmp_path):
    r = dict(run(3., K=3), vocab=list('abc'))
    sets = ConformalSets(r['valid_preds'], r['valid_targs'], .1)(r['preds'])
    alone = sets.sum(1)==1
    right = 100*float(sets[alone].gather(1, r['targs'][alone][:,None]).double().mean())
    row = cells(calibration_report({'net': r}, tmp_path/'a.html', n=5).read_text(), 'Sets that may miss 10').loc['net, LAC']
    assert row['one class']==f'{100*float(alone.double().mean()):.1f} %' and row['of these right'].startswith(f'{right:.1f} % (')

def test_a_network_that_tells_nothing_is_called_so_first(tmp_path):
    page = plain(calibration_report({'good': two_classes(), 'blind': two_classes(0.)}, tmp_path/'a.html', n=20).read_text())
    verdict = {k: page[page.index(f'{k}: mean confidence'):][:700] for k in ('good','blind')}
    assert 'no better than' not in verdict['good'].split('blind:')[0]
    assert re.search(r'Its probabilities are no better than giving every image the shares of the classes, whatever it shows: NLL [\d.]+ with one temperature against [\d.]+. Its macro AUROC is 0.50', verdict['blind'])
    assert 'It says no of every image.' in verdict['blind']

def test_the_words_for_the_methods_say_what_was_done(tmp_path):
    y = torch.arange(40)%2
    p = torch.nn.functional.one_hot(y, 2)*.6+.2
    items = pd.DataFrame(dict(patient=np.arange(40)//2))
    def words(**data):
        fn = calibration_report({'net': dict(preds=p, targs=y, vocab=['no','yes'], items=items)}, tmp_path/'r.html', n=7, data=data)
        return plain(fn.read_text()).replace('\N{NO-BREAK SPACE}', ' ')
    text = words()
    assert 'We judged 1 network (net) on 40 test images of 20 patients [' in text and '[Were the sets divided by patient?]' in text
    assert 'Intervals, where there are any, hold 95 % and are by patients: ' in text and 'from 7 bootstrap resamples (seed 0)' in text
    text = words(**{'training images': 1200, 'validation images': 8, 'patients in more than one split': 0})
    assert 'There were 1,200 training images, 8 validation images. No patient was in more than one' in text
    assert '3 patients were in more than one of these sets.' in words(**{'patients in more than one split': 3})

def test_a_report_per_patient_says_so_and_counts_the_images(tmp_path):
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 3)
    y = torch.from_numpy(rng.integers(0, 2, 40))[patient]
    p = torch.rand(120, generator=torch.Generator().manual_seed(0))
    items = pd.DataFrame(dict(patient=[f'P{o:02}' for o in patient], filename=[f'{i}.png' for i in range(120)]))
    one = CalibrationInterpretation.from_preds(torch.stack([1-p,p], 1), y, ['no','yes'], items).per_patient()
    text = plain(calibration_report({'net': one, 'same': one}, tmp_path/'r', n=5, title='t').read_text())
    assert (tmp_path/'r.html').exists()
    for o in ('2 networks judged on 40 patients, each by the mean probabilities of its images (120), 2 classes. Where this page says image, it means one of these patients.', 'patients judged 40',
              'on 40 patients, each by the mean probabilities of its images (120) [', 'are by patients'):
        assert ' '.join(o.split()) in ' '.join(text.split()), o
    assert not re.search(r'\bpatients 40\b', ' '.join(text.split()))   # said once
    assert 'images judged 40' not in ' '.join(text.split()) and 'Images per class' not in text
    mistakes = text[text.index('Both networks make the same mistake in'):]
    assert re.search(r'of 40 patients, the surest first: P\d\d, P\d\d', mistakes) and 'probability of the true class patient' in ' '.join(mistakes.split()) and '.png' not in text

def test_slips_in_what_is_reported_are_named(tmp_path):
    p,y = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)).softmax(1),torch.arange(30)%2
    def report(**kwargs):
        items = pd.DataFrame(dict(site=['x','y','z']*10, age=np.arange(30)))
        return calibration_report({'net': dict(preds=p, targs=y, items=items)}, tmp_path/'r.html', n=3, **kwargs)
    assert 'net, by site' in report(by='site').read_text()
    with pytest.raises(ValueError, match='did you mean site'): report(by=['Site'])
    with pytest.raises(ValueError, match='names of columns'): report(by=[np.arange(30)])
    with pytest.warns(UserWarning, match="'age' has 30 values"): report(by=['age'])
    with pytest.raises(ValueError, match='is a learner'): calibration_report({'net': toy_learner()}, tmp_path/'r.html')

def test_a_report_on_validation_images_says_that_they_are(tmp_path):
    learn = toy_learner()
    learn.dls.loaders.append(learn.dls.valid.new(TensorDataset(*toy_data(60, seed=2))))
    learn.fit(1, .1)
    said = {}
    for k in (1,2):
        interp = CalibrationInterpretation.from_learner(learn, ds_idx=k)
        said[k] = ' '.join(plain(calibration_report({'net': interp}, tmp_path/'r.html', n=3).read_text()).split())
    assert 'on 60 validation images [' in said[1] and 'they are the validation images of the learner' in said[1]
    assert 'These are the validation images of the learner' in said[1]
    assert 'on 60 test images [' in said[2] and 'the validation images of the learner' not in said[2]
