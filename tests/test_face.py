"What a stranger meets first: the citation, and the Pythons that the workflow runs."
import json, re
from project import root, settings

def test_citation_has_this_version_and_both_papers():
    text = (root/'CITATION.cff').read_text()
    assert re.search(r'^version: (.*)$', text, re.M)[1]==settings()['version']
    assert 'doi: 10.1109/TIP.2021.3089942\n' in text and 'doi: 10.1051/bioconf/202520401019\n' in text
    assert text.count('family-names')==7+5

def test_workflow_runs_every_python_that_the_package_claims():
    text = (root/'.github/workflows/test.yml').read_text()
    pythons = json.loads(re.search(r'python: (\[.*\])', text)[1])
    assert pythons[0]==settings()['min_python'] and pythons==[f'3.{i}' for i in range(10, 10+len(pythons))]
    assert 'run: make test\n' in text
