// A page with Uppy as it comes. asked.json beside it says what to do, window.told what came of it.
import Uppy from '@uppy/core'
import GoldenRetriever from '@uppy/golden-retriever'
import Tus from '@uppy/tus'

const told = { requests: [], restored: [], successful: 0, error: null, done: false }
window.told = told

const asked = await (await fetch('asked.json', { cache: 'no-store' })).json()
const uppy = new Uppy({ autoProceed: true, meta: asked.metadata })

uppy.use(Tus, {
  endpoint: asked.endpoint,
  headers: { Authorization: `Bearer ${asked.token}` },
  retryDelays: asked.retryDelays,
  onBeforeRequest(request) {
    told.requests.push([request.getMethod(), request.getHeader('Upload-Offset') ?? null])
  },
})
uppy.on('complete', ({ successful, failed }) => {
  told.successful = successful.length
  told.error = failed.length ? String(failed[0].error) : null
  told.done = true
})
// what the Dashboard does when its button "Resume" is pressed
uppy.on('restored', () => {
  told.restored = uppy.getFiles().map((file) => file.data?.size ?? null)
  uppy.emit('restore-confirmed')
})
uppy.use(GoldenRetriever)

document.querySelector('input').addEventListener('change', ({ target }) => {
  for (const file of target.files) uppy.addFile({ source: 'input', name: file.name, type: file.type, data: file })
})

// what would be there after a crash of the browser: Golden Retriever keeps it twice a second at most
window.kept = () => new Promise((resolve) => {
  const opening = indexedDB.open('uppy-blobs')
  opening.onsuccess = () => {
    const transaction = opening.result.transaction(['files', 'metadata'])
    const blobs = transaction.objectStore('files').getAll()
    const snapshots = transaction.objectStore('metadata').getAll()
    transaction.oncomplete = () => {
      opening.result.close()
      const files = snapshots.result.flatMap(({ metadata }) => Object.values(JSON.parse(metadata).files))
      resolve({ sizes: blobs.result.map(({ data }) => data.size), urls: files.map(({ tus }) => tus?.uploadUrl ?? null) })
    }
  }
})
told.ready = true
