<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Audit log: ${header.what}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid #d5dae0 }
th { border-bottom-width: 2px }
.n, .t { font-variant-numeric: tabular-nums; white-space: nowrap }
.d { color: #57606a; font-size: 13px; overflow-wrap: anywhere }
pre { background: #f4f6f8; padding: .8rem; overflow-x: auto } @media print { body { margin: 0 } tr { break-inside: avoid } }
</style>
<h1>Audit log: ${header.what}</h1>
<p>${len(rows)} entries, by the time of each (UTC); the leaf is its place in the log, which is the order of arrival. This page is for reading; what proves it is the bundle beside it:
<code>sightline audit verify</code> checks it on any machine, without asking the log.</p>
<table><tr><th>leaf</th><th>time</th><th>what</th><th>who</th><th>to what, and more</th></tr>
% for index, at, words, who, target, details in rows:
<tr><td class="n">${index}</td><td class="t">${at}</td><td>${words}</td><td>${who}</td><td>${target}
<div class="d">${" · ".join(f"{name}: {value}" for name, value in details.items())}</div></td></tr>
% endfor
</table>
<h2>What it can be checked against</h2>
<p>The log signs with <code>${header.key}</code><br>fingerprint ${fingerprint(header.key)}</p>
% for key in header.witness_keys:
<p>Witness: <code>${key}</code><br>fingerprint ${fingerprint(key)}</p>
% endfor
<pre>${header.checkpoint}</pre>
</html>
