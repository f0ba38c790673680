# What circuits are evaluated on: values, some of them perhaps hidden, or soft evidence of categories.

"""
    SoftEvidence(scores)

Soft evidence on every variable: `scores`, Float32 `(categories, variables, samples)`, are log-likelihoods of the evidence
given each category (leaf_h = sum over k of theta_{h,k} p(x_i | k)). They are replaced **in place** by
likelihoods whose largest is 1 for each variable and sample; `offset`, Float64 `(samples,)`, is what that took out, in nats.

Throws an `ArgumentError` that names the first score that is NaN or infinite; -Inf is allowed.
"""
struct SoftEvidence
    likelihood::Array{Float32,3}
    offset::Vector{Float64}
end

function SoftEvidence(scores::Array{Float32,3})
    K, V, N = size(scores)
    offset, threads = zeros(N), Threads.nthreads()
    in_pieces(1:N; steps=K * V, threads=threads) do samples
        check_scores(scores, samples, threads)
    end
    in_pieces(1:N; steps=10 * K * V, threads=threads) do samples
        Threads.@threads for n in samples
            offset[n] = take_out_largest!(scores, n)
        end
    end
    return SoftEvidence(scores, offset)
end

function check_scores(scores, samples, threads)
    sound = fill(true, threads)
    Threads.@threads for t in 1:threads
        for n in first(samples) + t - 1:threads:last(samples)
            all_below_infinity(scores, n) || (sound[t] = false)
        end
    end
    all(sound) && return
    k, i, n = Tuple(findfirst(s -> !(s < Inf32), view(scores, :, :, samples)))
    throw(ArgumentError("evidence: row $(samples[n] - 1), variable $(i - 1), category $(k - 1): found $(scores[k, i, samples[n]]), " *
                        "wanted a log-likelihood, a number or -Inf"))
end

function all_below_infinity(scores, n)
    sound = true
    @inbounds for i in axes(scores, 2)
        @simd for k in axes(scores, 1)
            sound &= scores[k, i, n] < Inf32  # NaN is not
        end
    end
    return sound
end

"Replaces the scores of sample `n` by likelihoods, and returns what was the logarithm of the largest ones, added up."
function take_out_largest!(scores, n)
    total = 0.0
    @inbounds for i in axes(scores, 2)
        top = -Inf32
        for k in axes(scores, 1)
            top = max(top, scores[k, i, n])
        end
        # Evidence that no category allows stays all zeros: the sample's likelihood is zero.
        shift = isfinite(top) ? top : 0f0
        for k in axes(scores, 1)
            scores[k, i, n] = exp(scores[k, i, n] - shift)
        end
        total += shift
    end
    return total
end

"""
    Masked(values, mask)

Values `(variables, samples)`, categories or numbers, of which those where `mask`, Bool of the same size, is true are marginalised.
"""
struct Masked{T<:AbstractMatrix{<:Real}}
    values::T
    mask::Matrix{Bool}

    function Masked(values::T, mask::Matrix{Bool}) where {T<:AbstractMatrix{<:Real}}
        size(values) == size(mask) ||
            throw(ArgumentError("mask: found $(reverse(size(mask))), wanted X's $(reverse(size(values)))"))
        return new{T}(values, mask)
    end
end

# A matrix is (variables, samples): integers, or, for variables over real numbers, floating-point numbers, the others' whole.
const Data = Union{AbstractMatrix{<:Real},Masked,SoftEvidence}

# The value of variable `i` of sample `n`, where it is known; and one as a category, which of a number beyond all of them is anything.

@inline is_known(X::AbstractMatrix, i, n) = true
@inline is_known(X::Masked, i, n) = !(@inbounds X.mask[i, n])
@inline known(X::AbstractMatrix, i, n) = @inbounds X[i, n]
@inline known(X::Masked, i, n) = @inbounds X.values[i, n]
@inline category(x::Integer) = x % Int32
@inline category(x::Real) = 0 <= x < 2^30 ? unsafe_trunc(Int32, x) : Int32(0)

"Whether all values are categories, or counts."
has_categories(::Data) = false
has_categories(::AbstractMatrix{<:Integer}) = true
has_categories(::Masked{<:AbstractMatrix{<:Integer}}) = true

num_samples(X::AbstractMatrix) = size(X, 2)
num_samples(X::Masked) = size(X.values, 2)
num_samples(X::SoftEvidence) = size(X.likelihood, 3)

"The likelihood of what is known of variable `i` of sample `n`, given category `k`, from 0; 1 for all where it is not looked at."
@inline likelihood(X::SoftEvidence, i, k, n) = Float64(X.likelihood[k + 1, i, n])
@inline likelihood(X, i, k, n) = 1.0

"What soft evidence took out of a sample's log-likelihood, in nats."
offset(X::Union{AbstractMatrix,Masked}, n) = 0.0
offset(X::SoftEvidence, n) = X.offset[n]

"Throws an `ArgumentError` that names the variable and the sample of the first value that its variable cannot have."
function check_data(X::AbstractMatrix{<:Real}, limits::Vector{Int32}, mask=nothing)
    size(X, 1) == length(limits) || throw(ArgumentError("X has $(size(X, 1)) variables, the circuit $(length(limits))"))
    top = [limit == COUNTS ? typemax(Int32) : limit == REALS ? REALS : limit - Int32(1) for limit in limits]
    threads = Threads.nthreads()
    in_pieces(axes(X, 2); steps=size(X, 1), threads=threads) do samples
        faulty = zeros(Int, threads)
        Threads.@threads for t in 1:threads
            for n in first(samples) + t - 1:threads:last(samples)
                sound = true
                @inbounds for i in 1:size(X, 1)
                    sound &= is_value(X[i, n], top[i]) | hidden(mask, i, n)
                end
                if !sound
                    faulty[t] = n
                    break
                end
            end
        end
        any(>(0), faulty) && refuse_value(X, top, mask, minimum(f for f in faulty if f > 0))
    end
end

"Whether `x` is a category or a count up to `top`, or, where that is `REALS`, a number of a size that can be squared."
@inline is_value(x::Integer, top::Int32) = ((zero(x) <= x) & (x <= top)) | ((top == REALS) & (abs(Float64(x)) <= LARGEST_REAL))
@inline is_value(x::Real, top::Int32) = top == REALS ? abs(x) <= LARGEST_REAL : (0 <= x <= top) && x == trunc(x)

function refuse_value(X, top, mask, n)
    i = findfirst(i -> !(is_value(X[i, n], top[i]) || hidden(mask, i, n)), axes(X, 1))
    top[i] == REALS && throw(ArgumentError("X: row $(n - 1), variable $(i - 1): found $(X[i, n]), wanted a number of at most $LARGEST_REAL"))
    0 <= X[i, n] <= top[i] && throw(ArgumentError("X: row $(n - 1), variable $(i - 1): found $(X[i, n]), wanted a whole number"))
    throw(ArgumentError("X: row $(n - 1), variable $(i - 1): value $(X[i, n]) is outside 0..$(top[i])"))
end

check_data(X::Masked, limits::Vector{Int32}) = check_data(X.values, limits, X.mask)

@inline hidden(::Nothing, i, n) = false
@inline hidden(mask::Matrix{Bool}, i, n) = @inbounds mask[i, n]

function check_data(X::SoftEvidence, limits::Vector{Int32})
    K, V, _ = size(X.likelihood)
    V == length(limits) || throw(ArgumentError("the evidence has $V variables, the circuit $(length(limits))"))
    all(==(K), limits) || throw(ArgumentError("the evidence has $K categories, the circuit's inputs $(extrema(limits))"))
end
