"""The style sheet and the script of the page, which are written into it."""

from __future__ import annotations

# A backslash joins a line with the next one.
STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--rule:#d8dee4;--paper:#fff;--tint:#f3f6f9;--accent:#00507d}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);\
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}
h1{font-size:1.7rem;margin:.4em 0 0}h2{font-size:1.2rem;margin:1.6em 0 .6em}
.subtitle{color:var(--soft);margin:0 0 1em}
.alarm{background:#fff0d1;border-left:5px solid #b45309;padding:.5em .8em;margin:.4em 0;\
font-weight:600;overflow-wrap:anywhere}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.28em .6em;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap;\
font-weight:400}
thead th{font-weight:600}th[scope=row]{text-align:left;font-weight:600}
.published th,.published td{color:var(--soft);background:var(--tint);font-style:italic}
.settings td,.settings th{text-align:left;white-space:normal;overflow-wrap:anywhere}
.notes{color:var(--soft);font-size:.9rem;padding-left:1.2em;overflow-wrap:anywhere}
.notes .strong{color:var(--ink);font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:18px;\
max-width:100%}
figure{margin:0;min-width:0}figcaption{font-weight:600;margin-bottom:.3em}
svg{width:100%;max-width:560px;height:auto;display:block}
svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;\
fill:var(--ink)}
svg .small{font-size:12px;fill:var(--soft)}svg .faint{font-size:11px}svg .value{font-size:12px;\
font-weight:600}
svg .grid{stroke:var(--rule);stroke-width:1}svg .mark{stroke:#b45309;stroke-width:1.5;\
stroke-dasharray:4 3}
.levels{display:flex;flex-wrap:wrap;gap:8px;margin:1.4em 0 0}
button,select{font:inherit;padding:.35em .7em;border:1px solid #8c959f;border-radius:6px;\
background:#fff;color:var(--ink);max-width:100%}
button[aria-pressed=true]{background:var(--accent);border-color:var(--accent);color:#fff}
button:focus-visible,select:focus-visible{outline:3px solid #8cc6ec}
.filters{display:flex;flex-wrap:wrap;gap:10px 16px;align-items:center;margin-bottom:12px}
.filters output{color:var(--soft)}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:14px}
article{border:1px solid var(--rule);border-radius:8px;padding:8px;min-width:0;\
overflow-wrap:anywhere}
article img{width:100%;height:auto;display:block;border-radius:4px}article p{margin:.4em 0 0}
article[hidden],section[hidden]{display:none}
.small{font-size:.83rem;color:var(--soft)}.tag{font-size:.83rem;color:var(--soft)}
.stages{width:100%;max-width:640px}.bar{width:60%}.bar span{display:block;height:14px;\
background:var(--accent);min-width:1px}
details{margin:.8em 0}summary{cursor:pointer}
@media print{.levels,.filters{display:none}section[hidden]{display:block}\
article{break-inside:avoid}}
"""

# Shows one level at a time; filters and sorts the gallery.
SCRIPT = """
(function(){
  "use strict";
  var buttons=[].slice.call(document.querySelectorAll("[data-show]"));
  var sections=[].slice.call(document.querySelectorAll("section.level"));
  function show(level){
    sections.forEach(function(s){s.hidden=s.dataset.level!==level;});
    buttons.forEach(function(b){b.setAttribute("aria-pressed",String(b.dataset.show===level));});
  }
  buttons.forEach(function(b){b.addEventListener("click",function(){show(b.dataset.show);});});
  if(buttons.length){show(buttons[0].dataset.show);}
  var gallery=document.getElementById("gallery");
  if(!gallery){return;}
  var cards=[].slice.call(gallery.children);
  function chosen(name){return document.getElementById("filter-"+name).value;}
  function update(){
    var shown=0,up=chosen("order")==="up";
    cards.forEach(function(c){
      c.hidden=["category","level","place"].some(function(k){var v=chosen(k);\
return v!=="*"&&c.dataset[k]!==v;});
      if(!c.hidden){shown+=1;}
    });
    cards.slice().sort(function(a,b){return \
(up?1:-1)*(Number(a.dataset.error)-Number(b.dataset.error));})
      .forEach(function(c){gallery.appendChild(c);});
    document.getElementById("shown").textContent=shown+" of "+cards.length+" pictures";
  }
  document.querySelector(".filters").addEventListener("change",update);
})();
"""
