// A fixed-size matrix template, a thread pool and Dijkstra's algorithm.
#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <future>
#include <iostream>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <queue>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

template <typename T, std::size_t R, std::size_t C>
class Matrix {
public:
    constexpr T& operator()(std::size_t r, std::size_t c) { return cells_[r * C + c]; }
    constexpr const T& operator()(std::size_t r, std::size_t c) const { return cells_[r * C + c]; }

    template <std::size_t K>
    constexpr Matrix<T, R, K> operator*(const Matrix<T, C, K>& rhs) const {
        Matrix<T, R, K> out;
        for (std::size_t i = 0; i < R; ++i)
            for (std::size_t j = 0; j < C; ++j)
                for (std::size_t k = 0; k < K; ++k)
                    out(i, k) += (*this)(i, j) * rhs(j, k);
        return out;
    }

    static constexpr Matrix identity() requires (R == C) {
        Matrix m;
        for (std::size_t i = 0; i < R; ++i) m(i, i) = T{1};
        return m;
    }

private:
    std::array<T, R * C> cells_{};
};

std::uint64_t fibonacci(unsigned n) {
    auto result = Matrix<std::uint64_t, 2, 2>::identity();
    Matrix<std::uint64_t, 2, 2> step;
    step(0, 0) = step(0, 1) = step(1, 0) = 1;
    for (; n; n >>= 1, step = step * step)
        if (n & 1) result = result * step;
    return result(0, 1);
}

class ThreadPool {
public:
    explicit ThreadPool(unsigned n = std::max(1u, std::thread::hardware_concurrency())) {
        for (unsigned i = 0; i < n; ++i)
            workers_.emplace_back([this] { run(); });
    }
    ~ThreadPool() {
        {
            std::lock_guard lock(mutex_);
            closing_ = true;
        }
        ready_.notify_all();
        for (auto& w : workers_) w.join();
    }
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    template <typename F>
    auto submit(F f) -> std::future<std::invoke_result_t<F>> {
        auto task = std::make_shared<std::packaged_task<std::invoke_result_t<F>()>>(std::move(f));
        auto result = task->get_future();
        {
            std::lock_guard lock(mutex_);
            jobs_.emplace([task] { (*task)(); });
        }
        ready_.notify_one();
        return result;
    }

private:
    void run() {
        for (;;) {
            std::function<void()> job;
            {
                std::unique_lock lock(mutex_);
                ready_.wait(lock, [this] { return closing_ || !jobs_.empty(); });
                if (jobs_.empty()) return;
                job = std::move(jobs_.front());
                jobs_.pop();
            }
            job();
        }
    }
    std::vector<std::thread> workers_;
    std::queue<std::function<void()>> jobs_;
    std::mutex mutex_;
    std::condition_variable ready_;
    bool closing_ = false;
};

struct Edge { std::string to; double km; };
using Graph = std::unordered_map<std::string, std::vector<Edge>>;

std::optional<double> shortest(const Graph& g, const std::string& from, const std::string& to) {
    using Item = std::pair<double, std::string>;
    std::priority_queue<Item, std::vector<Item>, std::greater<>> open;
    std::unordered_map<std::string, double> best{{from, 0.0}};
    open.emplace(0.0, from);
    while (!open.empty()) {
        auto [dist, here] = open.top();
        open.pop();
        if (here == to) return dist;
        if (dist > best[here]) continue;
        auto it = g.find(here);
        if (it == g.end()) continue;
        for (const auto& [next, km] : it->second) {
            auto [slot, fresh] = best.try_emplace(next, std::numeric_limits<double>::infinity());
            if (dist + km < slot->second) {
                slot->second = dist + km;
                open.emplace(slot->second, next);
            }
        }
    }
    return std::nullopt;
}

int main() {
    Graph roads{{"Bergen", {{"Voss", 100}, {"Odda", 130}}}, {"Voss", {{"Flåm", 65}}}, {"Odda", {{"Flåm", 150}}}};
    ThreadPool pool(2);
    auto fib = pool.submit([] { return fibonacci(90); });
    auto way = pool.submit([&] { return shortest(roads, "Bergen", "Flåm"); });
    std::cout << fib.get() << '\n' << way.get().value_or(-1) << " km\n";
}
