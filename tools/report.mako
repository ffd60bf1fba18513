<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Emergency cameras: ${figures["agency"]}, ${figures["since"][:10]} to ${figures["until"][:10]}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 48rem; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { text-align: left; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid #d5dae0 }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums }
.big { display: flex; flex-wrap: wrap; gap: 2.5rem; margin: 1.5rem 0 } .big b { display: block; font-size: 2rem; line-height: 1.2 }
svg { max-width: 100%; height: auto } pre { background: #f4f6f8; padding: .8rem; overflow-x: auto; font-size: 13px }
.small { color: #57606a; font-size: 14px } @media print { h2, table, svg { break-inside: avoid } }
</style>
<%
fewest, tables, times = figures["fewest"], figures["tables"], figures["times"]
pictures = times["from press to pictures"]
def seconds(value): return "–" if value is None else f"{value:,.1f} s"
def words(row): return row.replace("_", " ").lower() if row.isupper() else row
%>
<h1>Emergency cameras of ${figures["agency"]}<br>${figures["since"][:10]} to ${figures["until"][:10]}</h1>
<p>When an officer presses the emergency button of the radio, the body-worn camera starts and is watched from the real-time crime centre.
This is what was done with it. All figures are counted from the audit log; exercises are one number and in no other. Where there is a –
the number is not told: it is below ${fewest}, so that somebody could be recognised in it, or it would give away one that is.</p>
<div class="big">
<div><b>${shown(tables["emergencies"]["all"])}</b>emergencies</div>
<div><b>${shown(tables.get("views", {}).get("all", 0))}</b>times somebody watched</div>
<div><b>${seconds(pictures["median_s"])}</b>from press to pictures (median)</div>
</div>
% if months:
<h2>Emergencies by month</h2>
${months | n}
% endif
<h2>How long it takes</h2>
<table><tr><th></th><th>measured</th><th>median</th><th>95 of 100 within</th></tr>
% for name, time in times.items():
<tr><td>${name}</td><td>${shown(time["count"])}</td><td>${seconds(time["median_s"])}</td><td>${seconds(time["p95_s"])}</td></tr>
% endfor
</table>
% for name, content in tables.items():
<h2>${name.capitalize()}</h2>
% if name in charts:
${charts[name] | n}
% endif
<table>
% for row, count in content.items():
<tr><td>${words(row)}</td><td>${shown(count)}</td></tr>
% endfor
</table>
% endfor
<h2>How to check this</h2>
<p>The figures (<code>figures.json</code>) were signed with the key of the audit log: they were counted from exactly the leaves that the
checkpoint below covers; witnesses outside the agency cosign the checkpoints of the log. Whoever has the log counts them again, offline, with
<code>sightline audit recount</code>.</p>
<pre>${signed}</pre>
<p class="small">The log's key: <code>${key}</code><br>Fingerprint: ${fingerprint(key)}</p>
</html>
