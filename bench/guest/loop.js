// Objects, floats, integers, strings and closures, long enough that every tier of the compiler takes part.
class Point { constructor(x, y) { this.x = x; this.y = y; } dot(o) { return this.x * o.x + this.y * o.y; } }
function sieve(n) {
  const composite = new Uint8Array(n + 1); let found = 0;
  for (let i = 2; i <= n; i++) {
    if (composite[i]) continue;
    found++;
    for (let k = i * 2; k <= n; k += i) composite[k] = 1;
  }
  return found;
}
function dots(n) {
  const a = []; let sum = 0;
  for (let i = 0; i < 1000; i++) a.push(new Point(i * 0.5, 1000 - i));
  for (let turn = 0; turn < n; turn++) for (let i = 1; i < a.length; i++) sum += a[i].dot(a[i - 1]) % 7;
  return sum;
}
function hash(n) {
  let h = 2166136261;
  for (let i = 0; i < n; i++) h = Math.imul(h ^ (i & 255), 16777619) >>> 0;
  return h;
}
function words(n) {
  const count = new Map();
  for (let i = 0; i < n; i++) { const w = "w" + (i * 7919 % 1009); count.set(w, (count.get(w) || 0) + 1); }
  return [...count].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 3).join();
}
function collatz(n) {
  let best = 0n, at = 0n;
  for (let i = 1n; i < n; i++) {
    let x = i, steps = 0n;
    while (x !== 1n) { x = x & 1n ? 3n * x + 1n : x >> 1n; steps++; }
    if (steps > best) { best = steps; at = i; }
  }
  return at;
}
console.log(sieve(1000000), dots(2000).toFixed(6), hash(10000000), words(100000), String(collatz(2000n)));
const f = eval("(" + "x => ".repeat(20) + "x)"); let g = f; for (let i = 0; i < 20; i++) g = g(i);
console.log(g, [3, 1, 2].sort().map(x => x ** 0.5).join());
