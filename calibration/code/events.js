'use strict';

// An event emitter with wildcard topics, a debounced search box and a tiny template engine.

class Bus {
  #handlers = new Map();

  on(topic, fn) {
    if (!this.#handlers.has(topic)) this.#handlers.set(topic, new Set());
    this.#handlers.get(topic).add(fn);
    return () => this.#handlers.get(topic)?.delete(fn);
  }

  emit(topic, payload) {
    const parts = topic.split('.');
    for (const [pattern, fns] of this.#handlers) {
      const want = pattern.split('.');
      const hit = want.length === parts.length && want.every((w, i) => w === '*' || w === parts[i]);
      if (!hit) continue;
      for (const fn of [...fns]) {
        try {
          fn(payload, topic);
        } catch (err) {
          queueMicrotask(() => { throw err; });
        }
      }
    }
  }
}

const debounce = (fn, ms) => {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => fn(...args), ms);
  };
};

const escapeHtml = (s) =>
  String(s).replace(/[&<>"']/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' })[c]);

function render(template, data) {
  return template.replace(/\{\{(\{?)\s*([\w.]+)\s*\}?\}\}/g, (_, raw, path) => {
    const value = path.split('.').reduce((o, k) => (o == null ? undefined : o[k]), data) ?? '';
    return raw ? String(value) : escapeHtml(value);
  });
}

async function fetchWithRetry(url, { tries = 4, base = 200, ...init } = {}) {
  for (let attempt = 1; ; attempt++) {
    try {
      const res = await fetch(url, init);
      if (res.status < 500 && res.status !== 429) return res;
      if (attempt >= tries) throw new Error(`HTTP ${res.status} after ${tries} tries`);
    } catch (err) {
      if (attempt >= tries || err.name === 'AbortError') throw err;
    }
    const wait = base * 2 ** (attempt - 1) * (0.5 + Math.random());
    await new Promise((r) => setTimeout(r, wait));
  }
}

function attachSearch(input, list, bus) {
  let controller;
  const search = debounce(async () => {
    controller?.abort();
    controller = new AbortController();
    const q = input.value.trim();
    if (q.length < 2) { list.replaceChildren(); return; }
    try {
      const res = await fetchWithRetry(`/api/search?q=${encodeURIComponent(q)}`, { signal: controller.signal });
      const { items = [] } = await res.json();
      list.innerHTML = items.map((it) => render('<li data-id="{{ id }}">{{ title }}</li>', it)).join('');
      bus.emit('search.done', { q, n: items.length });
    } catch (err) {
      if (err.name !== 'AbortError') bus.emit('search.failed', err);
    }
  }, 250);
  input.addEventListener('input', search);
}

const groupBy = (xs, key) => xs.reduce((acc, x) => { (acc[key(x)] ??= []).push(x); return acc; }, {});

module.exports = { Bus, debounce, render, fetchWithRetry, attachSearch, groupBy };
