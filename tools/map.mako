<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Where everybody is, ${now.strftime("%H:%M:%S")}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 1rem; color: #1b1f24; background: #fff }
svg { width: 100%; height: auto; max-height: 85vh; background: #f3f1ea; border-radius: 6px } h1 { font-size: 1.2rem; margin: 0 0 .5rem }
.street { stroke: #fff; stroke-width: 4; stroke-linecap: round } .about { fill: #2b6cb0; opacity: .1 }
.officer { fill: #2b6cb0 } .vehicle { fill: #1f7a4d } .camera { fill: #6b7280 } .recording { fill: #c05621 } .emergency { fill: #c81e1e }
.mark { stroke: #fff; stroke-width: 1.5 } text { font-size: 13px; fill: #1b1f24; paint-order: stroke; stroke: #f3f1ea; stroke-width: 3px }
.legend span { margin-right: 1.4rem } .legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; margin-right: .35rem }
</style>
<h1>Ravensford, ${now.strftime("%Y-%m-%d %H:%M:%S")} UTC</h1>
<p class="legend">
% for name, colour in (("officer", "#2b6cb0"), ("vehicle", "#1f7a4d"), ("camera", "#6b7280"), ("recording", "#c05621"), ("emergency", "#c81e1e")):
<span><i style="background: ${colour}"></i>${sum(look == name for _, look, _, _ in units)} ${name}</span>
% endfor
A pale disc is how far off a place may be on purpose.
% if outside:
${outside} more are outside this city.
% endif
</p>
<svg viewBox="0 0 ${f"{width:.0f} {height:.0f}"}" role="img" aria-label="Map of the units on duty">
% for (x1, y1), (x2, y2) in streets:
<line class="street" x1="${f"{x1:.1f}"}" y1="${f"{y1:.1f}"}" x2="${f"{x2:.1f}"}" y2="${f"{y2:.1f}"}"/>
% endfor
% for unit, look, (x, y), about in units:
% if unit.coarse:
<circle class="about" cx="${f"{x:.1f}"}" cy="${f"{y:.1f}"}" r="${f"{about:.1f}"}"/>
% endif
% endfor
% for unit, look, (x, y), about in sorted(units, key=lambda each: each[1] == "emergency"):
<g><title>${unit.id}${f", {unit.unit_id}" if unit.unit_id else ""}</title>
<% size = 9 if look == "emergency" else 6 %>
% if unit.kind == VEHICLE:
<rect class="mark ${look}" x="${f"{x - size:.1f}"}" y="${f"{y - size:.1f}"}" width="${2 * size}" height="${2 * size}" rx="2"/>
% else:
<circle class="mark ${look}" cx="${f"{x:.1f}"}" cy="${f"{y:.1f}"}" r="${size}"/>
% endif
% if look in ("emergency", "recording"):
<text x="${f"{x + 12:.1f}"}" y="${f"{y + 4:.1f}"}">${unit.id}</text>
% endif
</g>
% endfor
</svg>
</html>
