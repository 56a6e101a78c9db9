"""The report's page: its style and skeleton, a jinja2 template."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root {
  --page: #faf9f7; --card: #ffffff; --line: #e6e2dc; --text: #1f1d1a; --soft: #6b665f; --accent: #b8430f;
  --good: #17693f; --good-back: #e5f3ea; --bad: #a61b1b; --bad-back: #fdeeee; --sim: #6a3db0; --sim-back: #f1eafb;
  --limit: #a61b1b; --series0: #1f5fa8; --series1: #d2691e; --series2: #2c8a5b; --series3: #8551b8;
  --queue: #cfc8be; --prefill: #e39a3b; --decode: #3f7fbf; --stall: #c62f2f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #161513; --card: #1f1e1b; --line: #36332e; --text: #ece8e1; --soft: #a9a297; --accent: #f0834d;
    --good: #7fd4a3; --good-back: #1b3226; --bad: #ff9d94; --bad-back: #3a1d1b; --sim: #c9a9ff; --sim-back: #2c2140;
    --limit: #ff8d83; --series0: #6fb0f5; --series1: #f0a060; --series2: #6cc79a; --series3: #c39af0;
    --queue: #57524a; --prefill: #d9943a; --decode: #5b9bdc; --stall: #f0645c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 68rem; margin: 0 auto; padding: 2.2rem 1.25rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.25; letter-spacing: -.015em; margin: 0 0 .35rem; overflow-wrap: anywhere; }
h2 { font-size: 1.08rem; letter-spacing: -.005em; margin: 2.4rem 0 .6rem; }
p { margin: 0 0 .5rem; }
.soft, figcaption { color: var(--soft); font-size: .88rem; }
.banner { border-radius: .7rem; padding: .8rem 1.1rem; margin: 1.1rem 0; }
.banner b { display: block; font-size: 1.5rem; letter-spacing: .09em; line-height: 1.25; }
.simulated { color: var(--sim); background: var(--sim-back); }
.invalid { color: var(--bad); background: var(--bad-back); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1.5rem 0 0; }
.tile, .card, figure { background: var(--card); border: 1px solid var(--line); border-radius: .8rem; }
.tile { padding: .8rem 1rem; }
.tile span { display: block; color: var(--soft); font-size: .82rem; }
.tile b { font-size: 1.5rem; letter-spacing: -.02em; font-weight: 650; font-variant-numeric: tabular-nums; }
.card { padding: .4rem 1rem .6rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .34rem .6rem; white-space: nowrap; border-top: 1px solid var(--line); }
tr:first-child th { border-top: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-size: .85rem; font-weight: 600; color: var(--soft); white-space: normal; overflow-wrap: anywhere; }
td small { color: var(--soft); margin-left: .45rem; font-size: .8rem; }
.best b { color: var(--good); background: var(--good-back); border-radius: .35rem; padding: .06rem .4rem; font-weight: 600; }
td b { font-weight: 400; padding: .06rem .4rem; }
dl { margin: .8rem 0 .6rem; display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 0 2.5rem; }
dl div { display: flex; justify-content: space-between; padding: .34rem 0; border-bottom: 1px solid var(--line); }
dd { margin: 0; font-variant-numeric: tabular-nums; }
figure { margin: 0; padding: .9rem 1rem .7rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif !important; }
figcaption { margin-top: .5rem; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
li { overflow-wrap: anywhere; }
details { margin-top: .9rem; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
code { font-size: .85rem; overflow-wrap: anywhere; white-space: normal; }
footer { margin-top: 2.6rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 42rem) { figure { overflow-x: auto; } figure svg { min-width: 44rem; } }
@media print { body { background: none; } figure, .tile, .card { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="soft">{{ workload.requests | length }} requests over {{ "%.1f" | format(workload.duration_s) }} s.
{{ workload.source }}</p>
{% if simulated %}
<div class="banner simulated"><b>SIMULATED</b>
{{ "These figures come" if all_simulated else "The figures of " + simulated | join(", ") + " come" }} from a virtual clock and a
cost model, not from a machine that did the work.</div>
{% endif %}
{% for name, lag in invalid %}
<div class="banner invalid"><b>INVALID</b>
{{ name }}: the replay itself fell behind its schedule (lag p99 {{ lag }}, at most {{ lag_limit }} is accepted), so the load was
not the one asked for.</div>
{% endfor %}
{% if tiles %}
<div class="tiles">
{% for label, value, detail in tiles %}
<div class="tile"><span>{{ label }}</span><b>{{ value }}</b><span>{{ detail }}</span></div>
{% endfor %}
</div>
{% endif %}
{% if notes %}
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endif %}
{% if compared %}
<h2>Side by side</h2>
<div class="card"><table>
<thead><tr><th></th><th>{{ names[0] }}</th><th>{{ names[1] }}</th><th>ratio, second to first</th></tr></thead>
<tbody>
{% for row in compared %}
<tr><td>{{ row.label }}</td>
<td{% if row.better == "a" %} class="best"{% endif %}><b>{{ row.a[0] }}</b><small>{{ row.a[1] }}</small></td>
<td{% if row.better == "b" %} class="best"{% endif %}><b>{{ row.b[0] }}</b><small>{{ row.b[1] }}</small></td>
<td><b>{{ row.ratio[0] }}</b><small>{{ row.ratio[1] }}</small></td></tr>
{% endfor %}
</tbody></table></div>
<p class="soft">Medians over alternating rounds, with lowest and highest; ratios pair the two runs of a round. Marked: ahead in
every round.</p>
{% else %}
<h2>Figures</h2>
{% if latencies %}
<div class="card"><table>
<thead><tr><th></th><th>p50</th><th>p95</th><th>p99</th><th>mean</th></tr></thead>
<tbody>
{% for label, values in latencies %}
<tr><td>{{ label }}</td>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<dl class="card">
{% for label, cells in figures %}
<div><dt>{{ label }}</dt><dd>{{ cells[0][0] }}</dd></div>
{% endfor %}
</dl>
{% else %}
<div class="card"><table>
<thead><tr><th></th>{% for run in runs %}<th>{{ run.name }}{{ ' (simulated)' if run.simulated }}</th>{% endfor %}</tr></thead>
<tbody>
{% for label, cells in figures %}
<tr><td>{{ label }}</td>
{% for value, good in cells %}
<td{% if good %} class="best"{% endif %}><b>{{ value }}</b></td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if runs | length > 1 %}<p class="soft">Marked: the better value.</p>{% endif %}
{% endif %}
{% for text in definitions %}
<p class="soft">{{ text }}</p>
{% endfor %}
{% if errors %}
<h2>Failures</h2>
{% for name, count, some in errors %}
<p>{{ name }}: {{ count }} of {{ workload.requests | length }} requests failed.</p>
<ul>{% for error in some %}<li><code>{{ error }}</code></li>{% endfor %}</ul>
{% endfor %}
{% endif %}
{% for heading, caption, svg in pictures %}
<h2>{{ heading }}</h2>
<figure>{{ svg | safe }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% for name, facts in info %}
<details><summary>What ran: {{ name }}</summary>
<ul>{% for key, value in facts.items() %}<li>{{ key }}: <code>{{ value }}</code></li>{% endfor %}</ul></details>
{% endfor %}
<footer>Times count from when a request was due. hasten {{ version }}.</footer>
</main>
</body>
</html>
"""
