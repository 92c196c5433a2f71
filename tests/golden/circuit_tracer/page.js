// Runs the function with which circuit-tracer's page reads a graph, outside any browser.
//
//     node page.js ASSETS GRAPH
//
// Prints what the page keeps: nodes with their streams and inputs, and how many links. Of d3, which
// the page loads from the internet, only the four functions that are used stand in here.

const fs = require('fs')
const vm = require('vm')

const [assets, graph] = process.argv.slice(2)

const order = (a, b) => (a < b ? -1 : a > b ? 1 : a >= b ? 0 : (a !== a) - (b !== b))
const d3 = {
  max: (values, f) => values.map(f).filter(v => v >= v).reduce((a, b) => (a > b ? a : b), undefined),
  sum: (values, f) => values.map(f).reduce((a, b) => a + (+b || 0), 0),
  sort: (values, f) => Array.from(values).sort((a, b) => order(f(a), f(b))),
  nestBy: (values, f) => {
    const groups = new Map()
    for (const one of values) {
      const key = f(one)
      if (!groups.has(key)) groups.set(key, Object.assign([], { key }))
      groups.get(key).push(one)
    }
    return Array.from(groups.values())
  },
}
const util = { params: { get: () => null }, ppToken: d => d }
const page = { d3, util, console: { log() {} } }
page.window = page
vm.runInNewContext(fs.readFileSync(`${assets}/attribution_graph/util-cg.js`, 'utf8'), page)

const data = JSON.parse(fs.readFileSync(graph, 'utf8'))
page.utilCg.formatData(data, { pinnedIds: data.qParams.pinnedIds }).then(found => {
  const nodes = found.nodes.map(d => ({
    id: d.nodeId,
    stream: d.streamIdx,
    error: Boolean(d.isError),
    said: d.clerp,
    logit: d.feature_type == 'logit' ? [d.logitToken, d.logitPct] : null,
    read: d.inputAbsSum,
    missed: d.inputError,
    feeds: d.targetLinks.length,
  }))
  nodes.sort((a, b) => (a.id < b.id ? -1 : 1))
  process.stdout.write(JSON.stringify({ nodes, links: found.links.length }, null, 1) + '\n')
})
