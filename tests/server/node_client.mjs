// Drives the server at TIER_BASE_URL with Tier's own client from npm, and prints what it was answered, as JSON.
import { Tier } from 'tier/client'

const tier = new Tier({ baseURL: process.env.TIER_BASE_URL, apiKey: process.env.TIER_API_KEY })
const said = {}
const plain = value => JSON.parse(JSON.stringify(value ?? null))
const keep = async (name, promise) => (said[name] = plain(await promise))
const errorOf = async (name, promise) => {
  try {
    said[name] = { answered: plain(await promise) }
  } catch (error) {
    const { status, code, path, message, requestData, responseData } = error
    said[name] = plain({ is: error.constructor.name, status, code, path, message, requestData, responseData })
  }
}

const model = {
  plans: {
    'plan:free@1': { features: { 'feature:calls': { tiers: [{ upto: 10 }] } } },
    'plan:pro@1': { title: 'Pro', features: { 'feature:calls': { tiers: [{ upto: 100 }] }, 'feature:sso': {} } },
    'plan:pro@2': { title: 'Pro', features: { 'feature:calls': { tiers: [{}] } } },
  },
}

await keep('push', tier.push(model))
await keep('pushed again', tier.push(model))
await keep('pull', tier.pull())
await keep('pullLatest', tier.pullLatest())
await keep('whoami', tier.whoami())

await keep('subscribe', tier.subscribe('org:acme', 'plan:free@1', { info: { email: 'ann@acme.example', name: 'Acme' } }))
await keep('limits', tier.lookupLimits('org:acme'))
await keep('limit', tier.lookupLimit('org:acme', 'feature:calls'))
await keep('limit of none', tier.lookupLimit('org:acme', 'feature:nope'))
const can = await tier.can('org:acme', 'feature:calls')
await keep('can', { ok: can.ok, err: can.err })
await keep('answer.report', can.report())
await keep('report', tier.report('org:acme', 'feature:calls', 5))
await keep('after two reports', tier.lookupLimit('org:acme', 'feature:calls'))
await keep('report at, clobber', tier.report('org:acme', 'feature:calls', 10, { at: new Date(), clobber: true }))
await keep('after clobber', tier.lookupLimit('org:acme', 'feature:calls'))
const full = await tier.can('org:acme', 'feature:calls')
await keep('can no more', { ok: full.ok, err: full.err })

await keep('phase', tier.lookupPhase('org:acme'))
await keep('whois', tier.whois('org:acme'))
await keep('updateOrg', tier.updateOrg('org:acme', { description: 'a customer', metadata: { k: 'v' } }))
await keep('lookupOrg', tier.lookupOrg('org:acme'))
await keep('payment methods', tier.lookupPaymentMethods('org:acme'))
await keep('checkout', tier.checkout('org:acme', 'https://shop.example/ok', {
  features: 'plan:pro@1', trialDays: 3, cancelUrl: 'https://shop.example/no', requireBillingAddress: true,
  tax: { automatic: true, collectId: true },
}))

await keep('schedule', tier.schedule('org:trial', [
  { trial: true, features: ['plan:pro@1'] },
  { features: ['plan:pro@1'], effective: new Date(Date.now() + 14 * 86400_000) },
], { info: { email: 'bob@trial.example' }, paymentMethodID: 'pm_1' }))
await keep('trial', tier.lookupPhase('org:trial'))
await keep('subscribe with trial', tier.subscribe('org:trial2', ['plan:pro@1'], { trialDays: 7 }))
await keep('trial2', tier.lookupPhase('org:trial2'))
await keep('cancel', tier.cancel('org:trial2'))

const clocked = await tier.withClock('rehearsal', new Date('2024-01-31T00:00:00Z'))
await keep('clock', { id: clocked.clockID })
await keep('clocked subscribe', clocked.subscribe('org:acme', 'plan:free@1'))
await keep('clocked report', clocked.report('org:acme', 'feature:calls', 10))
await keep('clocked can', { ok: (await clocked.can('org:acme', 'feature:calls')).ok })
await keep('advance', clocked.advance(new Date('2024-02-29T00:00:01Z')))
await keep('clocked can after', { ok: (await clocked.can('org:acme', 'feature:calls')).ok })
await keep('clocked phase', clocked.lookupPhase('org:acme'))

await errorOf('org_not_found', tier.lookupLimits('org:nobody'))
await errorOf('bad org', tier.lookupLimits('nobody'))
await errorOf('feature_not_found', tier.report('org:acme', 'feature:nope'))
await errorOf('not reportable', tier.report('org:trial', 'feature:sso'))
await errorOf('bad feature', tier.report('org:acme', 'nope'))
await errorOf('negative', tier.report('org:acme', 'feature:calls', -1))
await errorOf('TERR1020', tier.subscribe('org:acme', 'plan:nope@1'))
await errorOf('no version', tier.subscribe('org:acme', 'plan:free'))
await errorOf('invalid_email', tier.updateOrg('org:acme', { email: 'nope' }))
await errorOf('invalid_metadata', tier.updateOrg('org:acme', { metadata: { 'tier.x': 'y' } }))
await errorOf('no phase', tier.lookupPhase('org:trial2'))
await errorOf('bad model', tier.push({ plans: { 'plan:x@1': { interval: '@quarterly' } } }))
await errorOf('backwards', clocked.advance(new Date('2024-01-01T00:00:00Z')))
await errorOf('bad success_url', tier.checkout('org:acme', 'javascript:x'))
const other = new Tier({ baseURL: process.env.TIER_BASE_URL, apiKey: 'wrong' })
await errorOf('invalid_api_key', other.whoami())
const unknown = await tier.can('org:nobody', 'feature:calls')
await keep('can of nobody', { ok: unknown.ok, code: unknown.err.code })
const empty = await tier.can('org:trial2', 'feature:calls')
await keep('can without subscription', { ok: empty.ok, err: empty.err })

process.stdout.write(JSON.stringify(said))
