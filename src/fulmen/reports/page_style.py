"""What a report page looks like, and the few lines of script that show values under the pointer."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = (
    """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--text:#1c2330;--soft:#667085;--line:#e3e6ec;--grid:#eceef2;
--c0:#6206e0;--c1:#e8590c;--c2:#0b7285;--c3:#c2255c;--c4:#2b8a3e;--c5:#1971c2;--c6:#a07900;--c7:#495057;
--good:#2b8a3e;--goodbg:#ebfbee;--bad:#c92a2a;--badbg:#fff0f0;--warn:#8a6100;--warnbg:#fff8e1}
@media (prefers-color-scheme:dark){:root{--bg:#12151b;--card:#1a1f28;--text:#e6e9ef;--soft:#98a2b3;--line:#2b323e;
--grid:#252c37;--c0:#b197fc;--c1:#ff922b;--c2:#3bc9db;--c3:#f783ac;--c4:#69db7c;--c5:#74c0fc;--c6:#ffd43b;--c7:#ced4da;
--good:#69db7c;--goodbg:#16301d;--bad:#ff8787;--badbg:#3a1b1f;--warn:#ffd43b;--warnbg:#332a10}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1280px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:24px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:13px;text-transform:uppercase;letter-spacing:.07em;color:var(--soft);margin:34px 0 10px;font-weight:600}
h3{font-size:15px;margin:0 0 2px;font-weight:600;overflow-wrap:anywhere}
.sub{color:var(--soft);margin:0;overflow-wrap:anywhere}
.badge{display:inline-block;border-radius:99px;padding:1px 10px;font-size:13px;font-weight:600;vertical-align:2px;
margin-left:8px;white-space:nowrap}
.good{color:var(--good);background:var(--goodbg)}.failed{color:var(--bad);background:var(--badbg)}
.open{color:var(--warn);background:var(--warnbg)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(46%,180px),1fr));gap:10px;margin-top:18px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:10px 14px}.tile b{display:block;font-size:18px;line-height:1.3;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}.tile span{color:var(--soft);font-size:12.5px}
.grid2{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:12px}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:0 12px;align-items:start}
.card{padding:14px 16px;min-width:0}
.scroll{overflow-x:auto}.first{margin-top:14px}
svg{display:block;width:100%;height:auto;touch-action:pan-y}
svg text{font-size:11px;fill:var(--soft)}
.grid{stroke:var(--grid);stroke-width:1}.axis{stroke:var(--line);stroke-width:1}
.cursor{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
polyline{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}
"""
    + "".join(f".c{n}{{stroke:var(--c{n})}}circle.c{n},svg text.c{n}{{fill:var(--c{n});stroke:none}}" for n in range(8))
    + """
polyline.any{stroke:var(--soft)}polyline.raw{opacity:.28;stroke-width:1.1}
.d1{stroke-dasharray:6 4}.d2{stroke-dasharray:2 4}.d3{stroke-dasharray:9 3 2 3}
circle.d1,circle.d2,circle.d3{stroke:none}
svg text.bad{font-size:15px;font-weight:700}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12.5px;margin:2px 0 6px;min-height:20px}
.legend span{display:inline-flex;align-items:center;gap:6px;overflow-wrap:anywhere}
.legend svg{width:20px;height:8px;flex:none}
.readout{color:var(--soft);font-size:12.5px;min-height:19px;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:500;font-size:12.5px;white-space:nowrap}
td{overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;overflow-wrap:normal}
td.k{color:var(--soft);width:34%;min-width:110px}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.92em}
pre{margin:6px 0 0;padding:10px 12px;background:var(--bg);border:1px solid var(--line);border-radius:8px;
overflow-x:auto;font-size:13px;white-space:pre-wrap;overflow-wrap:anywhere}
.note{color:var(--warn);background:var(--warnbg);border-radius:8px;padding:8px 14px;margin:14px 0 0;font-size:14px}
.empty{color:var(--soft)}.mark{color:var(--good);font-weight:600}
footer{color:var(--soft);font-size:12.5px;margin-top:40px}
@media (max-width:560px){main{padding:18px 12px 40px}h1{font-size:20px}.card{padding:12px}}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
"""
)

# Shows the values nearest to the pointer; without scripts the page lacks nothing else.
SCRIPT = """
document.querySelectorAll('svg[data-curves]').forEach(svg=>{
const curves=JSON.parse(svg.dataset.curves),line=svg.querySelector('.cursor'),
out=svg.parentNode.querySelector('.readout'),
near=(p,x)=>{let a=0,b=p.length-1;while(b-a>1){const m=(a+b)>>1;if(p[m][0]<x)a=m;else b=m}
return Math.abs(p[a][0]-x)<Math.abs(p[b][0]-x)?p[a]:p[b]};
svg.addEventListener('pointermove',e=>{
const box=svg.getBoundingClientRect(),x=(e.clientX-box.left)/box.width*svg.viewBox.baseVal.width;
let best=null;const found=[];
for(const [label,color,points] of curves){if(!points.length)continue;const p=near(points,x);
found.push([label,p]);if(!best||Math.abs(p[0]-x)<Math.abs(best[0]-x))best=p}
if(!best)return;
line.setAttribute('x1',best[0]);line.setAttribute('x2',best[0]);line.setAttribute('visibility','visible');
const same=found.every(f=>f[1][1]===best[1]);
const texts=found.map(f=>f[0]+' '+f[1][2]+(same?'':' (step '+f[1][1]+')'));
out.textContent=(same?'step '+best[1]+': ':'')+texts.join(', ')});
svg.addEventListener('pointerleave',()=>{line.setAttribute('visibility','hidden');out.textContent=''})});
"""
