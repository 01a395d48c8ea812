// A team of threads that stays between calls. A token of a small model is a few hundred short stages, and starting threads or sleeping at each would cost as
// much as the work: waiting threads spin for a while before they sleep.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

class Pool {
  public:
    // Throws what std::thread throws where so many cannot be started; those that were are gone then.
    explicit Pool(int threads) : size_(threads < 1 ? 1 : threads) {
        try {
            for (int i = 1; i < size_; i++) team_.emplace_back([this, i] { serve(i); });
        } catch (...) {
            dismiss();
            throw;
        }
    }

    ~Pool() { dismiss(); }

    int size() const { return size_; }

    // Every thread calls work(thread); returns when all have.
    void run(const std::function<void(int)> &work) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = &work;
            turn_.fetch_add(1, std::memory_order_release);
        }
        if (asleep_.load()) wake_.notify_all();
        work(0);
        barrier();
    }

    // Returns when every thread has called it. Inside `run` only.
    void barrier() {
        const unsigned stage = stage_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            stage_.store(stage + 1, std::memory_order_release);
            return;
        }
        spin([&] { return stage_.load(std::memory_order_acquire) != stage; }, 1L << 62);
    }

  private:
    void dismiss() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = nullptr;
            turn_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (auto &one : team_) one.join();
    }

    // Whether `ready` came within so many looks. Where threads outnumber processors, giving way lets the others get there.
    template <typename Ready>
    static bool spin(Ready ready, long looks) {
        for (long i = 0; i < looks; i++) {
            if (ready()) return true;
#ifdef __x86_64__
            _mm_pause();
#endif
            if (i % 1024 == 1023) std::this_thread::yield();
        }
        return false;
    }

    void serve(int thread) {
        for (unsigned last = 0;;) {
            const auto called = [&] { return turn_.load(std::memory_order_acquire) != last; };
            if (!spin(called, LOOKS)) {
                std::unique_lock<std::mutex> lock(mutex_);
                asleep_.fetch_add(1);
                wake_.wait(lock, called);
                asleep_.fetch_sub(1);
            }
            last++;
            const std::function<void(int)> *work = work_;
            if (!work) return;
            (*work)(thread);
            barrier();
        }
    }

    static constexpr long LOOKS = 20000;  // about half a millisecond
    const int size_;
    std::vector<std::thread> team_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> turn_{0}, stage_{0};
    std::atomic<int> arrived_{0}, asleep_{0};
    const std::function<void(int)> *work_ = nullptr;
};
