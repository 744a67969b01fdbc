// Starts every part, and prepares paper: light colours, and nothing folded away.
startTheme();
startTables();
startCopies();
startNavigation();
startCurves();
startClasses();
startTradeoff();
startDistributions();
startSpans();
startLayers();
startPictures();

let width = innerWidth;
let waiting = 0;
addEventListener('resize', () => {
  if (innerWidth === width) return; // a phone's bar came or went
  width = innerWidth;
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(redrawAll);
});

const beforePaper = { theme: undefined, closed: [] };
addEventListener('beforeprint', () => {
  beforePaper.theme = root.dataset.theme;
  beforePaper.closed = Array.from(document.querySelectorAll('details:not([open])'));
  for (const details of beforePaper.closed) details.open = true;
  root.dataset.theme = 'light';
  root.classList.add('paper'); // as wide as paper, so that plots are drawn for it
  redrawAll();
});
addEventListener('afterprint', () => {
  for (const details of beforePaper.closed) details.open = false;
  root.classList.remove('paper');
  if (beforePaper.theme) root.dataset.theme = beforePaper.theme;
  else delete root.dataset.theme;
  redrawAll();
});
root.dataset.ready = 'true';
