// Package limiter offers a token bucket per client and an HTTP middleware on top of it.
package limiter

import (
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// ErrClosed is returned by Wait after Close.
var ErrClosed = errors.New("limiter: closed")

type bucket struct {
	tokens float64
	last   time.Time
}

// Limiter refills rate tokens per second, up to burst, for each key.
type Limiter struct {
	rate, burst float64
	now         func() time.Time

	mu      sync.Mutex
	buckets map[string]*bucket
	done    chan struct{}
	once    sync.Once
}

func New(rate float64, burst int) *Limiter {
	l := &Limiter{
		rate:    rate,
		burst:   float64(burst),
		now:     time.Now,
		buckets: make(map[string]*bucket),
		done:    make(chan struct{}),
	}
	go l.sweep(time.Minute)
	return l
}

// Take spends one token; if there is none it reports how long to wait.
func (l *Limiter) Take(key string) (ok bool, retry time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b, found := l.buckets[key]
	if !found {
		b = &bucket{tokens: l.burst, last: now}
		l.buckets[key] = b
	}
	b.tokens = min(l.burst, b.tokens+now.Sub(b.last).Seconds()*l.rate)
	b.last = now
	if b.tokens >= 1 {
		b.tokens--
		return true, 0
	}
	missing := (1 - b.tokens) / l.rate
	return false, time.Duration(missing * float64(time.Second))
}

func (l *Limiter) Wait(key string) error {
	for {
		ok, d := l.Take(key)
		if ok {
			return nil
		}
		select {
		case <-time.After(d):
		case <-l.done:
			return ErrClosed
		}
	}
}

func (l *Limiter) sweep(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-l.done:
			return
		case now := <-t.C:
			l.mu.Lock()
			for k, b := range l.buckets {
				if now.Sub(b.last).Seconds()*l.rate >= l.burst {
					delete(l.buckets, k)
				}
			}
			l.mu.Unlock()
		}
	}
}

func (l *Limiter) Close() { l.once.Do(func() { close(l.done) }) }

// Middleware answers 429 with Retry-After when a client is too fast.
func (l *Limiter) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		if ok, d := l.Take(host); !ok {
			w.Header().Set("Retry-After", strconv.Itoa(int(d.Seconds())+1))
			http.Error(w, "slow down", http.StatusTooManyRequests)
			return
		}
		next.ServeHTTP(w, r)
	})
}
