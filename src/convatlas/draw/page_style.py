"""The style sheet of pages: light and dark, narrow and wide screens, print on A4."""

from convatlas.draw.style import DARK, INK, NOTE, PAPER, RIGHT, WRONG

STYLE = f"""
:root {{ --ink: {INK}; --note: {NOTE}; --paper: {PAPER}; --right: {RIGHT}; --wrong: {WRONG}; --card: #f4f7f9;
  --line: #d9e0e6; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: {DARK[INK]}; --note: {DARK[NOTE]}; --paper: {DARK[PAPER]};
  --right: {DARK[RIGHT]}; --wrong: {DARK[WRONG]}; --card: #1b232c; --line: #323d49; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", sans-serif; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }}
h1 {{ font-size: 28px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 19px; margin: 0 0 4px; }} h3 {{ font-size: 15px; margin: 12px 0 4px; }}
p {{ margin: 4px 0; }} ul {{ margin: 4px 0; padding-left: 20px; overflow-wrap: anywhere; }}
.quiet, figcaption span, dt {{ color: var(--note); }}
section {{ margin-top: 36px; }}
.summary {{ display: grid; grid-template-columns: minmax(220px, 1fr) 2.6fr; gap: 16px 36px; margin-top: 20px;
  padding: 22px 26px; border-radius: 12px; background: var(--card); border-left: 6px solid var(--accent);
  --accent: var(--right); }}
.doubtful {{ --accent: var(--wrong); }}
.big {{ font-size: 50px; line-height: 1.05; font-weight: 700; color: var(--accent); margin: 0; }}
.warning {{ color: var(--wrong); font-weight: 600; }}
.interval {{ color: var(--note); font-size: 13px; }}
.scale {{ display: block; position: relative; height: 8px; border-radius: 4px; background: var(--line);
  margin: 8px 0 4px; }}
.scale span {{ position: absolute; top: 0; bottom: 0; border-radius: 4px; background: var(--accent); }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px 20px;
  margin: 12px 0 0; }}
dt {{ font-size: 12.5px; }} dd {{ margin: 0; font-weight: 600; overflow-wrap: anywhere; }}
.commands div {{ display: grid; grid-template-columns: 150px minmax(0, 1fr); gap: 12px; align-items: baseline; }}
.commands span {{ color: var(--note); }}
pre {{ margin: 3px 0; padding: 5px 10px; border-radius: 6px; background: var(--card); font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere; }}
.beside {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 12px 36px;
  align-items: start; }}
.beside > div {{ min-width: 0; }}
.first {{ grid-template-columns: minmax(0, 2fr) minmax(0, 1fr); }} .first th, .first td {{ padding-right: 12px; }}
.scroll {{ overflow: auto; max-width: 100%; max-height: 460px; }} .scroll + p {{ margin-top: 10px; }}
table {{ border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 3px 20px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }}
td {{ overflow-wrap: anywhere; min-width: 7em; unicode-bidi: plaintext; }}
.n {{ overflow-wrap: normal; min-width: 0; }} .pairs th {{ color: var(--note); font-weight: normal; }}
thead th {{ position: sticky; top: 0; background: var(--paper); vertical-align: bottom; }}
.n {{ text-align: right; }} td.n {{ white-space: nowrap; }} th:last-child, td:last-child {{ padding-right: 0; }}
figure {{ margin: 0; }} figcaption {{ font-size: 13px; line-height: 1.4; overflow-wrap: anywhere; }}
.plot {{ margin: 8px 0; }} .plot img {{ display: block; max-width: 100%; height: auto; max-height: 760px; }}
.plot figcaption {{ color: var(--note); margin-top: 6px; max-width: 46em; }}
.thumbnails {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 16px;
  margin-top: 8px; }}
.thumbnails img {{ display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 8px;
  background: var(--card); }}
.thumbnails .pixelated {{ image-rendering: pixelated; }}
.thumbnails .wide {{ grid-column: span 3; }} .thumbnails .wide img {{ aspect-ratio: auto; }}
.thumbnails b {{ color: var(--wrong); }} .thumbnails figcaption {{ margin-top: 4px; font-size: 12.5px; }}
.thumbnails figcaption > * {{ display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 5;
  overflow: hidden; text-align: left; unicode-bidi: plaintext; }}
.thumbnails summary {{ list-style: none; cursor: zoom-in; }}
.thumbnails summary::-webkit-details-marker {{ display: none; }}
.thumbnails details {{ margin: 0; }}
.thumbnails [open] img {{ position: fixed; inset: 0; z-index: 9; width: 100vw; height: 100vh; aspect-ratio: auto;
  padding: 4vmin; border-radius: 0; background: rgb(0 0 0 / 0.88); cursor: zoom-out; }}
details {{ margin-top: 10px; }} summary {{ cursor: pointer; color: var(--right); }}
@media (max-width: 900px) {{ .first {{ grid-template-columns: minmax(0, 1fr); }} }}
@media (max-width: 640px) {{
  main {{ padding: 20px 14px 40px; }} h1 {{ font-size: 23px; }} .big {{ font-size: 42px; }}
  .summary {{ grid-template-columns: 1fr; padding: 16px; }} dl {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }}
  .commands div {{ grid-template-columns: minmax(0, 1fr); gap: 0; }} th, td {{ padding-right: 12px; }}
  td {{ min-width: 4em; }}
  .first .plot {{ overflow-x: auto; }} .first .plot img {{ max-width: none; width: 560px; }}
  .first figcaption {{ position: sticky; left: 0; }}
  .thumbnails {{ grid-template-columns: repeat(2, minmax(0, 1fr)); }} .thumbnails .wide {{ grid-column: span 2; }}
}}
@page {{ size: A4; margin: 11mm; }}
@media print {{
  body {{ font-size: 8.6pt; line-height: 1.3; }} main {{ max-width: none; padding: 0; }}
  h1 {{ font-size: 15pt; }} h2 {{ font-size: 11pt; }} h3 {{ font-size: 9pt; margin: 4px 0 2px; }}
  section {{ margin-top: 11px; }} h2, h3, .quiet {{ break-after: avoid; }}
  .summary {{ margin-top: 8px; padding: 8px 14px; grid-template-columns: 1fr 2.6fr; gap: 8px 24px;
    print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  .big {{ font-size: 26pt; }} dl {{ gap: 3px 16px; margin-top: 4px; grid-template-columns: repeat(4, 1fr); }}
  dt, figcaption, .interval {{ font-size: 7.6pt; }} pre {{ font-size: 7.6pt; padding: 1px 6px; }}
  .scale, .scale span {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  table {{ font-size: 7.6pt; }} th, td {{ padding: 0.5px 12px 0.5px 0; }}
  .scroll {{ overflow: visible; max-height: none; }} thead th {{ position: static; }}
  .beside {{ grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 4px 20px; }}
  .first {{ grid-template-columns: minmax(0, 1.5fr) minmax(0, 1fr); }}
  .plot, .summary, .thumbnails figure, tr {{ break-inside: avoid; }} .plot img {{ max-height: 55mm; }}
  .first .plot img {{ max-width: 100%; width: auto; }}
  .thumbnails {{ grid-template-columns: repeat(8, 1fr); gap: 6px; }} .thumbnails figcaption {{ font-size: 6.4pt; }}
  details:not(.thumbnails details) {{ display: none; }}
}}
"""
